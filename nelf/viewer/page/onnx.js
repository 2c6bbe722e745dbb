// Parses an ONNX file: the nodes and constants of its graph, with the field numbers of onnx.proto.

import { halves } from "./volume.js";

const [VARINT, FIXED64, BYTES, FIXED32] = [0, 1, 2, 5]; // wire types of protocol buffers
const FLOAT = 1; // of TensorProto.data_type
const TYPES = { 1: Float32Array, 2: Uint8Array, 3: Int8Array, 6: Int32Array, 7: BigInt64Array, 10: Uint16Array };
const HALF = 10;
const MOST_NUMBERS = 2 ** 26; // of a constant

/**
 * @typedef {object} Tensor
 * @property {number[]} shape
 * @property {Float32Array | Uint8Array | Int8Array | Int32Array | number[]} values
 *
 * @typedef {object} Node
 * @property {string} kind such as "Conv"
 * @property {string[]} inputs
 * @property {string[]} outputs
 * @property {Record<string, number | number[] | string>} attributes
 *
 * @typedef {{nodes: Node[], constants: Map<string, Tensor>, inputs: string[], outputs: string[]}} Graph
 */

/**
 * @param {Uint8Array} file
 * @param {string} name
 * @returns {Graph}
 */
export function readGraph(file, name) {
  try {
    const [graph] = fieldsOf(file)[7] ?? [];
    if (!graph) throw new RangeError("it has no graph");
    const { 1: nodes = [], 5: tensors = [], 11: inputs = [], 12: outputs = [] } = fieldsOf(graph);
    return {
      nodes: nodes.map(nodeOf),
      constants: new Map(tensors.map(tensorOf)),
      inputs: inputs.map(nameOf),
      outputs: outputs.map(nameOf),
    };
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new Error(`${name}: is not a whole ONNX file (${error.message}).`);
  }
}

/** The fields of a message by field number: bytes, or numbers. */
function fieldsOf(bytes) {
  if (!(bytes instanceof Uint8Array)) throw new RangeError("a number stands for a message");
  const fields = {};
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const reader = { bytes, at: 0 };
  while (reader.at < bytes.length) {
    const key = varint(reader);
    const [number, kind] = [Math.floor(key / 8), key % 8];
    let value;
    if (kind === VARINT) value = varint(reader);
    else if (kind === FIXED64 || kind === FIXED32) {
      value = kind === FIXED32 ? view.getFloat32(reader.at, true) : view.getFloat64(reader.at, true);
      reader.at += kind === FIXED32 ? 4 : 8;
    } else if (kind === BYTES) value = taken(reader, varint(reader));
    else throw new RangeError("a field is of no known kind");
    (fields[number] ??= []).push(value);
  }
  return fields;
}

/** A varint of up to 64 bits; exact up to 2^53. */
function varint(reader) {
  let value = 0n;
  for (let shift = 0n; shift < 70n; shift += 7n) {
    if (reader.at >= reader.bytes.length) throw new RangeError("it ends too early");
    const byte = reader.bytes[reader.at++];
    value |= BigInt(byte & 127) << shift;
    if (byte < 128) return Number(BigInt.asIntN(64, value));
  }
  throw new RangeError("a number is too long");
}

function taken(reader, length) {
  if (!(length >= 0 && reader.at + length <= reader.bytes.length)) throw new RangeError("it ends too early");
  reader.at += length;
  return reader.bytes.subarray(reader.at - length, reader.at);
}

const decoder = new TextDecoder();
const textOf = (bytes) => (bytes instanceof Uint8Array ? decoder.decode(bytes) : "");
const nameOf = (value) => textOf(fieldsOf(value)[1]?.[0]);

/** Repeated integers, packed or not. */
function wholes(values = []) {
  return values.flatMap((value) => {
    if (!(value instanceof Uint8Array)) return [value];
    const [reader, found] = [{ bytes: value, at: 0 }, []];
    while (reader.at < value.length) found.push(varint(reader));
    return found;
  });
}

function nodeOf(bytes) {
  const { 1: inputs = [], 2: outputs = [], 4: kind, 5: attributes = [] } = fieldsOf(bytes);
  return {
    kind: textOf(kind?.[0]),
    inputs: inputs.map(textOf),
    outputs: outputs.map(textOf),
    attributes: Object.fromEntries(attributes.map(attributeOf)),
  };
}

/** Name and value of an attribute: an integer, integers, or a string; other types are ignored. */
function attributeOf(bytes) {
  const { 1: name, 3: whole, 4: text, 8: several } = fieldsOf(bytes);
  return [textOf(name?.[0]), several ? wholes(several) : text ? textOf(text[0]) : whole?.[0]];
}

/** Name and content of a constant. */
function tensorOf(bytes) {
  const { 1: dims, 2: type = [FLOAT], 4: floats, 5: ints, 7: longs, 8: name, 9: raw } = fieldsOf(bytes);
  const [shape, label] = [wholes(dims), textOf(name?.[0])];
  const size = shape.reduce((product, side) => product * side, 1);
  const Type = TYPES[type[0]];
  if (!Type || !shape.every((side) => side >= 0) || size > MOST_NUMBERS) {
    throw new RangeError(`${label} is of no known kind or size`);
  }
  let values;
  if (raw) values = numbersOf(raw[0], Type);
  else if (floats) values = floats.flatMap((each) => (each.length ? [...numbersOf(each, Float32Array)] : each));
  else values = wholes(ints ?? longs);
  if (Type !== BigInt64Array) values = Type.from(values);
  if (values.length !== size) throw new RangeError(`${label} has not as many numbers as its shape says`);
  if (type[0] === HALF) {
    const table = halves();
    values = Float32Array.from(values, (half) => table[half]);
  }
  return [label, { shape, values: Type === BigInt64Array ? Array.from(values, Number) : values }];
}

function numbersOf(bytes, Type) {
  if (bytes.length % Type.BYTES_PER_ELEMENT) throw new RangeError("a constant ends within a number");
  return new Type(bytes.slice().buffer);
}
