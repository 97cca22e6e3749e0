// Files that a person drops, pastes or chooses: pictures to ask about, and saved traces.

import { Problem } from "./api.js";

const PICTURES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const READABLE = [1, 2]; // schema versions of traces

export function isTrace(file) {
  return /\.jsonl?$/i.test(file.name) || file.type === "application/json";
}

/** The picture as a data URL that the server takes: drawn smaller where it would be too large. */
export async function picture(file, limits) {
  if (!PICTURES.includes(file.type)) {
    throw new Problem(`${file.name} is not a picture that can be read: take PNG, JPEG, WEBP, GIF or BMP.`);
  }
  const url = await dataUrl(file);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    throw new Problem(`${file.name} cannot be opened as a picture; it may be damaged.`);
  }
  const room = 0.9 * limits.max_body_bytes;
  const pixels = image.naturalWidth * image.naturalHeight;
  if (url.length <= room && pixels <= limits.max_image_pixels) return url;
  const scale = Math.min(1, Math.sqrt(limits.max_image_pixels / pixels), Math.sqrt(room / url.length));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.floor(image.naturalHeight * scale));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.9);
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Problem(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

/** The traces of a .json or .jsonl file. */
export async function traces(file) {
  const text = await file.text();
  const whole = parsed(text);
  if (whole !== undefined) return [checked(whole, file.name)];
  const lines = text.split("\n").map((line, at) => [line.trim(), at + 1]).filter(([line]) => line);
  if (!lines.length) throw new Problem(`${file.name} is empty.`);
  return lines.map(([line, number]) => checked(parsed(line), `Line ${number} of ${file.name}`));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** The trace as the viewer reads it. */
function checked(data, where) {
  const isRecord = data && Array.isArray(data.stages) && Array.isArray(data.messages)
    && data.stages.every((stage) => Array.isArray(stage?.candidates) && Array.isArray(stage?.matches));
  if (!isRecord) throw new Problem(`${where} is not a trace.`);
  if (!READABLE.includes(data.schema_version)) {
    throw new Problem(`${where} is a trace of version ${data.schema_version}, which this page does not read.`);
  }
  const stages = data.stages.map((stage) => ({ planned: stage.candidates.length, ...stage }));
  return { retraces: [], limited: null, problems: [], ...data, stages };
}
