// Which corners of a grid exist, and data derived from that. A mask has one bit per corner, the highest bit first.

const CLEARANCE = 12; // cells: the largest step through empty space

/** Whether a corner exists. */
const has = (mask, corner) => (mask[corner >> 3] >> (7 - (corner & 7))) & 1;

/** The number of existing corners. */
export function countCorners(mask, corners) {
  let found = 0;
  for (let i = 0; i < corners; i++) found += has(mask, i);
  return found;
}

/** The row of each corner, -1 if it does not exist. */
export function indexOf(mask, [depth, height, width]) {
  const index = new Int32Array(depth * height * width).fill(-1);
  for (let i = 0, row = 0; i < index.length; i++) if (has(mask, i)) index[i] = row++;
  return index;
}

/**
 * The Chebyshev distance of each cell from the nearest one with all its corners, at most 12, by two passes over all
 * neighbors. A cell's value is stored at the index of its first corner.
 */
export function clearanceOf(index, [depth, height, width]) {
  const [d, h, w] = [depth - 1, height - 1, width - 1];
  // A margin of one cell avoids bounds checks for neighbors.
  const [row, slice] = [w + 2, (w + 2) * (h + 2)];
  const far = new Uint8Array(slice * (d + 2)).fill(CLEARANCE);
  const before = [-1, -row - 1, -row, -row + 1];
  for (let y = -1; y <= 1; y++) for (let x = -1; x <= 1; x++) before.push(-slice + y * row + x);
  const clearance = new Uint8Array(depth * height * width);
  for (let z = 0; z < d; z++) {
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        const at = (z + 1) * slice + (y + 1) * row + x + 1;
        if (whole(index, (z * height + y) * width + x, width, width * height)) far[at] = 0;
        else for (const step of before) if (far[at + step] + 1 < far[at]) far[at] = far[at + step] + 1;
      }
    }
  }
  for (let z = d - 1; z >= 0; z--) {
    for (let y = h - 1; y >= 0; y--) {
      for (let x = w - 1; x >= 0; x--) {
        const at = (z + 1) * slice + (y + 1) * row + x + 1;
        if (far[at]) for (const step of before) if (far[at - step] + 1 < far[at]) far[at] = far[at - step] + 1;
        clearance[(z * height + y) * width + x] = far[at];
      }
    }
  }
  return clearance;
}

/** Whether all eight corners of a cell exist. */
function whole(index, c, row, slice) {
  for (let corner = 0; corner < 8; corner++) {
    if (index[c + (corner & 1) + (corner & 2 ? row : 0) + (corner & 4 ? slice : 0)] < 0) return false;
  }
  return true;
}
