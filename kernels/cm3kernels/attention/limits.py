"""What the implementations of `attention` can take."""

OP = "attention"
#: Longest document whose scores are multiplied out in bfloat16 on a CPU: in one head they take 0.5 MB.
LONGEST_PRODUCT = 512
#: A whole tile of queries is in registers.
LARGEST_HEAD_DIM = 128
#: A row's address within a tile is a 32-bit product with the stride.
LARGEST_TOKEN_STRIDE = 2**24
#: The second and third dimension of a CUDA grid.
LARGEST_GRID = 65_535
#: Positions and their sums with an offset are 32-bit.
MOST_TOKENS = 2**29
