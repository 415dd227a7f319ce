// The mask, painted over a picture with a pointer or the keyboard.

export class Brush {
  constructor(canvas, size) {
    this.canvas = canvas; this.size = size; this.picture = null; this.strokes = []; this.cursor = null;
    this.mask = document.createElement("canvas");
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.picture) return;
      canvas.setPointerCapture(event.pointerId);
      this.strokes.push([]); this.to(event);
    });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons && this.strokes.length) this.to(event); });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.cursor = null; this.show(); });
    canvas.addEventListener("focus", () => this.show());
  }

  open(picture) {
    this.picture = picture; this.strokes = []; this.cursor = null;
    for (const one of [this.canvas, this.mask]) { one.width = picture.width; one.height = picture.height; }
    this.show();
  }

  get radius() { return Math.max(1, (this.size.valueAsNumber / 100) * this.canvas.width / 2); }

  to(event) {
    const box = this.canvas.getBoundingClientRect();
    this.dab((event.clientX - box.left) / box.width * this.canvas.width, (event.clientY - box.top) / box.height * this.canvas.height);
  }

  dab(x, y) { this.strokes.at(-1).push({ x, y, radius: this.radius }); this.show(); }

  key(event) {
    if (!this.picture) return;
    const step = Math.max(1, this.radius);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    this.cursor ??= { x: this.canvas.width / 2, y: this.canvas.height / 2 };
    if (moves[event.key]) {
      this.cursor.x = Math.min(this.canvas.width, Math.max(0, this.cursor.x + moves[event.key][0]));
      this.cursor.y = Math.min(this.canvas.height, Math.max(0, this.cursor.y + moves[event.key][1]));
      this.show();
    } else if (event.key === " ") { this.strokes.push([]); this.dab(this.cursor.x, this.cursor.y); } else return;
    event.preventDefault();
  }

  undo() { this.strokes.pop(); this.show(); }
  clear() { this.strokes = []; this.show(); }
  invert() { this.strokes.push("invert"); this.show(); }

  // Draws the mask: opaque white where the user painted.
  paint() {
    const context = this.mask.getContext("2d", { willReadFrequently: true });
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, this.mask.width, this.mask.height);
    context.fillStyle = context.strokeStyle = "#fff"; context.lineCap = context.lineJoin = "round";
    for (const stroke of this.strokes) {
      if (stroke === "invert") {
        context.globalCompositeOperation = "xor"; context.fillRect(0, 0, this.mask.width, this.mask.height);
        context.globalCompositeOperation = "source-over"; continue;
      }
      for (const [place, dab] of stroke.entries()) {
        context.beginPath(); context.arc(dab.x, dab.y, dab.radius, 0, 2 * Math.PI); context.fill();
        if (place) { context.lineWidth = 2 * dab.radius; context.beginPath(); context.moveTo(stroke[place - 1].x, stroke[place - 1].y); context.lineTo(dab.x, dab.y); context.stroke(); }
      }
    }
  }

  show() {
    if (!this.picture) return;
    this.paint();
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.globalAlpha = 1; context.drawImage(this.picture, 0, 0);
    context.save();
    const tint = document.createElement("canvas"); tint.width = this.mask.width; tint.height = this.mask.height;
    const own = tint.getContext("2d"); own.drawImage(this.mask, 0, 0); own.globalCompositeOperation = "source-in"; own.fillStyle = "#4f46e5"; own.fillRect(0, 0, tint.width, tint.height);
    context.globalAlpha = 0.6; context.drawImage(tint, 0, 0); context.restore();
    if (this.cursor && document.activeElement === this.canvas) {
      context.beginPath(); context.arc(this.cursor.x, this.cursor.y, this.radius, 0, 2 * Math.PI);
      context.lineWidth = Math.max(1, this.canvas.width / 150); context.strokeStyle = "#e11d48"; context.stroke();
    }
  }

  // The API's mask: transparent where the user painted; null if nothing is painted.
  async exported() {
    this.paint();
    const pixels = this.mask.getContext("2d").getImageData(0, 0, this.mask.width, this.mask.height);
    let any = false;
    for (let place = 3; place < pixels.data.length; place += 4) {
      const marked = pixels.data[place] > 127; any ||= marked; pixels.data[place] = marked ? 0 : 255;
    }
    if (!any) return null;
    const sent = document.createElement("canvas"); sent.width = this.mask.width; sent.height = this.mask.height;
    sent.getContext("2d").putImageData(pixels, 0, 0);
    return sent.toDataURL("image/png");
  }

  // The mask as a file: white where the user painted, black elsewhere.
  async whiteMask() {
    this.paint();
    const pixels = this.mask.getContext("2d").getImageData(0, 0, this.mask.width, this.mask.height);
    for (let place = 0; place < pixels.data.length; place += 4) pixels.data.set([...Array(3).fill(pixels.data[place + 3] > 127 ? 255 : 0), 255], place);
    const sent = document.createElement("canvas"); sent.width = this.mask.width; sent.height = this.mask.height;
    sent.getContext("2d").putImageData(pixels, 0, 0);
    return sent.toDataURL("image/png");
  }
}
