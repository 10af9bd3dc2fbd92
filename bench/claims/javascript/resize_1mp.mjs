// Bilinear resize of an RGBA image in plain JavaScript: the integers of examples/guests/c/resize.c.
// None of them passes 2^45, so doubles hold them exactly. Node.js has nothing of its own that
// resizes, so there is no `builtin`.

const ONE = 65536;

function tapsOf(targetSide, sourceSide, step) {
  const low = new Int32Array(targetSide);
  const high = new Int32Array(targetSide);
  const weight = new Int32Array(targetSide);
  for (let target = 0; target < targetSide; target++) {
    let at = Math.floor(((2 * target + 1) * sourceSide * ONE) / (2 * targetSide)) - ONE / 2;
    at = Math.min(Math.max(at, 0), (sourceSide - 1) * ONE);
    const first = Math.floor(at / ONE);
    low[target] = first * step;
    high[target] = Math.min(first + 1, sourceSide - 1) * step;
    weight[target] = at % ONE;
  }
  return { low, high, weight };
}

export function plain(request) {
  const header = new DataView(request.buffer, request.byteOffset, 16);
  const [sourceWidth, sourceHeight, width, height] = [0, 4, 8, 12].map((at) => header.getUint32(at, true));
  const pixels = request.subarray(16);
  const columns = tapsOf(width, sourceWidth, 4);
  const rows = tapsOf(height, sourceHeight, 4 * sourceWidth);
  const output = new Uint8Array(width * height * 4);
  for (let y = 0, at = 0; y < height; y++) {
    const upper = rows.low[y], lower = rows.high[y], v = rows.weight[y];
    for (let x = 0; x < width; x++) {
      const left = columns.low[x], right = columns.high[x], u = columns.weight[x];
      for (let c = 0; c < 4; c++) {
        const top = pixels[upper + left + c] * (ONE - u) + pixels[upper + right + c] * u;
        const bottom = pixels[lower + left + c] * (ONE - u) + pixels[lower + right + c] * u;
        output[at++] = Math.floor((top * (ONE - v) + bottom * v + 2147483648) / 4294967296);
      }
    }
  }
  return output;
}
