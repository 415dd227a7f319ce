"""`cm3 complete`: the icons that a set lacks, in the set's own hand, as clean SVG files."""
