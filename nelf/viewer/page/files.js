// Files of a bundle: fetched with progress, checked and unpacked.

const GZIP_RATIO = 1032; // maximum compression ratio of gzip

/**
 * Fetch a file.
 * @param {string} base address of the bundle
 * @param {string} name
 * @param {string | null} sha256 of its content, where it is known
 * @param {(about: {name: string, received: number, total: number}) => void} progress total is 0 where it is unknown
 * @returns {Promise<Uint8Array>}
 */
export async function load(base, name, sha256, progress) {
  const response = await fetch(new URL(name, base)).catch(() => {
    throw new Error(`${name}: the server does not answer.`);
  });
  if (!response.ok) throw new Error(`${name}: is missing from the bundle (the server says ${response.status}).`);
  const packed = response.headers.has("Content-Encoding"); // then Content-Length is the compressed length
  const total = packed ? 0 : Number(response.headers.get("Content-Length"));
  const chunks = [];
  let received = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read().catch(() => {
      throw new Error(`${name}: the connection broke off. Load the page again.`);
    });
    if (done) break;
    chunks.push(value);
    received += value.length;
    progress({ name, received, total });
  }
  const content = new Uint8Array(await new Blob(chunks).arrayBuffer());
  // crypto.subtle exists only on localhost and https.
  if (sha256 && self.crypto.subtle && (await digest(content)) !== sha256) {
    throw new Error(`${name}: is damaged, or not the file that bundle.json describes.`);
  }
  return content;
}

/**
 * Decompress a gzip file of known size, with memory for no more than that size.
 * @param {Uint8Array} file
 * @param {string} name
 * @param {number} size of its content, bytes
 * @returns {Promise<Uint8Array>}
 */
export async function unpacked(file, name, size) {
  if (file.byteLength === size) return file; // hosts that declare .gz as an encoding: the browser has decompressed it
  const wrong = (held) => new Error(`${name}: holds ${held} bytes, but bundle.json describes ${size}.`);
  if (!(size <= GZIP_RATIO * file.byteLength)) throw wrong("too few");
  const content = new Uint8Array(size);
  const reader = new Blob([file]).stream().pipeThrough(new DecompressionStream("gzip")).getReader();
  for (let received = 0; ; ) {
    const { done, value } = await reader.read().catch(() => {
      throw new Error(`${name}: is not a whole gzip file.`);
    });
    if (done && received < size) throw wrong(received);
    if (done) return content;
    if (received + value.length > size) throw wrong("more");
    content.set(value, received);
    received += value.length;
  }
}

/** SHA-256 in hexadecimal digits. */
async function digest(content) {
  const bytes = new Uint8Array(await self.crypto.subtle.digest("SHA-256", content));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
