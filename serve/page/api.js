// What the page asks of its server. Failures are Problems: a sentence that says what happened and
// what to do.

const KEY = "stagebeam-api-key"; // in sessionStorage alone: gone with the tab

export class Problem extends Error {
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** What the controls start from. */
export async function settings() {
  return (await reply("page/settings.json")).json();
}

export async function trace(id) {
  return (await reply(`v1/traces/${encodeURIComponent(id)}`)).json();
}

/** The chunks of a streamed answer, as they come. */
export async function* ask(body, signal) {
  const answer = await reply("v1/chat/completions", {
    method: "POST", body: JSON.stringify(body), signal,
    headers: { "Content-Type": "application/json" },
  });
  let whole = false;
  for await (const line of lines(answer.body)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice(5).trim();
    if (data === "[DONE]") { whole = true; break; }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem(chunk.error.message);
    yield chunk;
  }
  if (!whole) {
    throw new Problem("The connection broke off before the answer was there. Ask again.");
  }
}

async function reply(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached. See whether it still runs, then try again.");
  }
  if (!answer.ok) throw await refused(answer);
  return answer;
}

async function refused(answer) {
  let said = "";
  try {
    said = (await answer.json()).error.message;
  } catch {
    said = `The server answered with status ${answer.status}.`;
  }
  const after = Number(answer.headers.get("Retry-After"));
  return new Problem(said, { status: answer.status, retryAfter: after > 0 ? after : null });
}

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      yield* parts;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The connection broke off before the answer was there. Ask again.");
  } finally {
    await reader.cancel().catch(() => {});
  }
  if (rest) yield rest;
}
