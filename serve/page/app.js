// The page: a question is asked, its search is watched, and another question may follow.

import * as api from "./api.js";
import { isTrace, picture, traces } from "./files.js";
import { Turn } from "./turn.js";

const NAMES = { // of what a search is asked with; the value of an empty control is the server's own
  method: String, candidates: Number, tournament: String, temperature: Number, seed: Number,
};
const USES = { // controls that a method has a use for
  greedy: ["seed"],
  majority: ["candidates", "temperature", "seed"],
  best_of_n: ["candidates", "tournament", "temperature", "seed"],
  sentence_beam: ["candidates", "tournament", "temperature", "seed"],
  stage_beam: ["candidates", "tournament", "temperature", "seed"],
  retrace: ["candidates", "temperature", "seed"],
};

const $ = (id) => document.getElementById(id);
const EXAMPLE = $("question").placeholder;
let offered = null; // what the server says of itself
let image = null; // data URL
let history = []; // messages of the conversation, without the picture
let running = null; // AbortController of the question under way

// Controls

function offer(settings) {
  offered = settings;
  $("model").textContent = settings.model;
  $("candidates").max = settings.limits.max_candidates;
  $("picture").hidden = settings.limits.max_images < 1;
  keepOptions("method", settings.methods);
  keepOptions("tournament", settings.tournaments);
  for (const name of Object.keys(NAMES)) {
    const value = settings.search[name];
    if (typeof value === "object") $(name).placeholder = "by stage";
    else $(name).value = value;
  }
  fit();
}

/** What the operator does not allow is not offered. */
function keepOptions(name, allowed) {
  for (const option of [...$(name).options]) if (!allowed.includes(option.value)) option.remove();
}

/** Only what the method has a use for can be set, and the summary says what is set. */
function fit() {
  const uses = USES[$("method").value];
  for (const name of Object.keys(NAMES)) {
    if (name !== "method") $(name).disabled = !uses.includes(name);
  }
  const method = $("method").selectedOptions[0]?.textContent;
  const n = uses.includes("candidates") && $("candidates").value;
  $("settings-summary").textContent = `${method}${n ? `, N = ${n}` : ""}, seed ${$("seed").value || "0"}`;
}

function wanted() {
  const search = offered.watch ? { include_events: true } : {};
  for (const [name, read] of Object.entries(NAMES)) {
    const control = $(name);
    if (!control.disabled && control.value !== "") search[name] = read(control.value);
  }
  return search;
}

// Asking

async function ask() {
  const question = $("question").value.trim();
  if (!question) {
    problem("Write a question first.");
    return $("question").focus();
  }
  if (running || !offered) return;
  problem(null);
  if (!history.length) clear();
  const messages = [...history, { role: "user", content: question }];
  const search = wanted();
  const turn = new Turn($("turns"), { question, picture: history.length ? null : image, say, doing });
  const { method, candidates = offered.search.candidates, tournament } = search;
  turn.start({ method, candidates, tournament });
  turn.element.scrollIntoView({ block: "start" });
  running = new AbortController();
  busy(true);
  try {
    await watch(turn, { model: offered.model, messages: withPicture(messages), stream: true, search });
    turn.end();
    history = continued(messages, turn.state);
    if (turn.state.id) {
      window.history.replaceState(null, "", `?trace=${encodeURIComponent(turn.state.id)}`);
    }
    $("question").value = "";
  } catch (error) {
    if (error.name === "AbortError") turn.stop();
    else { turn.stop(); turn.element.remove(); failed(error); }
  } finally {
    running = null;
    busy(false);
  }
}

async function watch(turn, body) {
  const said = { content: "", reasoning_content: "" };
  for await (const chunk of api.ask(body, running.signal)) {
    if (chunk.event) turn.tell(chunk.event);
    const delta = chunk.choices[0]?.delta ?? {};
    for (const name of Object.keys(said)) said[name] += delta[name] ?? "";
  }
  if (turn.state.running) turn.answer(said.content, said.reasoning_content);
}

function withPicture(messages) {
  if (!image) return messages;
  const [first, ...rest] = messages;
  const parts = [{ type: "image_url", image_url: { url: image } }, { type: "text", text: first.content }];
  return [{ role: "user", content: parts }, ...rest];
}

/** The conversation with this answer, as the model wrote it. */
function continued(messages, trace) {
  return trace.text.trim() ? [...messages, { role: "assistant", content: trace.text }] : messages.slice(0, -1);
}

function failed(error) {
  if (error.status === 401) return askForKey(error.message);
  if (!(error instanceof api.Problem)) console.error(error);
  const known = error instanceof api.Problem;
  const after = error.retryAfter ? ` Try again in ${error.retryAfter} seconds.` : "";
  problem(known ? error.message + after : "The page failed; reload it and ask again.", known);
}

function busy(on) {
  $("running").hidden = !on;
  $("composer").hidden = on;
  const follows = history.length > 0;
  $("composer").classList.toggle("follow", follows);
  $("question-label").textContent = follows ? "A follow-up question" : "Your question";
  $("question").placeholder = follows ? "Ask about the same picture, or about the answer" : EXAMPLE;
  $("fresh").hidden = !$("turns").children.length || on;
  $("intro").hidden = $("turns").children.length > 0;
  if (on) $("stop").focus({ preventScroll: true });
  else $("question").focus({ preventScroll: true });
}

// What is said

function say(sentence) {
  $("status").textContent = sentence;
}

function doing(sentence) {
  $("doing").textContent = sentence;
}

function problem(sentence, again = false) {
  $("problem").hidden = !sentence;
  $("problem").replaceChildren(sentence ?? "");
  if (!again) return;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Try again";
  button.addEventListener("click", () => $("question").value.trim() ? ask() : location.reload());
  $("problem").append(button);
}

function askForKey(reason) {
  problem(reason);
  $("key-dialog").showModal();
}

// Pictures and traces

async function take(file) {
  try {
    if (isTrace(file)) return openTraces(await traces(file));
    if (history.length) throw new api.Problem("A picture belongs to the first question: choose New question first.");
    setPicture(await picture(file, offered.limits));
    problem(null);
  } catch (error) {
    failed(error);
    $("problem").querySelector("button")?.remove();
  }
}

function setPicture(url) {
  image = url;
  if (url) $("preview").src = url;
  $("chosen").hidden = !url;
  $("drop").hidden = Boolean(url);
  $("image").value = "";
}

function openTraces(found) {
  problem(null);
  const label = (trace) => `${trace.messages.at(-1)?.text ?? trace.id} (${trace.method}, ${trace.conclusion ?? "no conclusion"})`;
  $("choices").replaceChildren(...found.map((trace, at) => new Option(label(trace), at)));
  $("choices").onchange = () => showTrace(found[$("choices").value]);
  showTrace(found[0]);
  $("choice").hidden = found.length < 2;
}

function showTrace(trace) {
  clear();
  const { messages } = trace;
  const turn = new Turn($("turns"), { question: messages.at(-1)?.text ?? "", earlier: messages.slice(0, -1), say });
  try {
    turn.show(trace);
  } catch (error) {
    turn.element.remove();
    console.warn(error);
    problem("This file is damaged: it is not a whole trace.");
  }
  $("intro").hidden = true;
  $("fresh").hidden = false;
}

/** What is shown goes; the question and the picture in the form stay. */
function clear() {
  $("turns").replaceChildren();
  history = [];
  say("");
}

function fresh() {
  clear();
  setPicture(null);
  problem(null);
  $("choice").hidden = true;
  $("question").value = "";
  window.history.replaceState(null, "", "./");
  busy(false);
}

// Wiring

$("composer").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("composer").addEventListener("input", fit);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
$("stop").addEventListener("click", () => running?.abort());
$("fresh").addEventListener("click", fresh);
$("remove").addEventListener("click", () => { setPicture(null); $("image").focus(); });
$("image").addEventListener("change", () => $("image").files[0] && take($("image").files[0]));
$("open").addEventListener("click", () => $("trace-file").click());
$("trace-file").addEventListener("change", () => {
  const [file] = $("trace-file").files;
  if (file) take(file);
  $("trace-file").value = "";
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.keepKey($("key").value.trim());
  $("key").value = "";
  $("key-dialog").close();
  problem(null);
  if ($("question").value.trim()) ask(); else start();
});
$("key-cancel").addEventListener("click", () => $("key-dialog").close());
document.addEventListener("dragover", (event) => { event.preventDefault(); $("composer").classList.add("over"); });
document.addEventListener("dragleave", (event) => event.relatedTarget || $("composer").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("composer").classList.remove("over");
  if (event.dataTransfer.files[0] && !running) take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (file && !running) { event.preventDefault(); take(file); }
});

async function start() {
  try {
    if (!offered) offer(await api.settings());
    const id = new URLSearchParams(location.search).get("trace");
    if (id) showTrace(await api.trace(id));
  } catch (error) {
    failed(error);
  }
}

await start();
document.body.dataset.ready = "true";
