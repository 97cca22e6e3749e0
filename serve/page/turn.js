// One question on the page, and its answer as far as it is known.

import { begin, tell } from "./fold.js";
import { createView, progress } from "./viewer.js";

const TAG = /<\/?(?:SUMMARY|CAPTION|REASONING|CONCLUSION)>/g;

export class Turn {
  /** `say` is told what a person who does not see the page should hear, `doing` where it is. */
  constructor(parent, { question, picture = null, earlier = [], say, doing = () => {} }) {
    this.say = say;
    this.doing = doing;
    this.element = make("article", "turn");
    const asked = make("header", "asked");
    if (picture) {
      const image = make("img");
      image.src = picture;
      image.alt = "The picture that was asked about";
      asked.append(image);
    }
    asked.append(make("h2", "", question));
    this.view = make("div");
    this.actions = make("p", "actions");
    this.element.append(...earlier.map(earlierLine), asked, this.view, this.actions);
    parent.append(this.element);
    this.drawing = createView(this.view);
    this.said = "";
  }

  /** Begin to draw a search that is under way. */
  start(asked) {
    this.began = performance.now();
    this.state = begin(asked);
    this.timer = setInterval(() => this.draw(), 500);
    this.draw();
  }

  tell(event) {
    this.state = tell(this.state, event);
    this.draw();
  }

  /** A finished trace. */
  show(trace) {
    this.state = trace;
    this.draw();
    this.offer();
  }

  draw() {
    const { state } = this;
    const elapsed = state.running ? { elapsed: (performance.now() - this.began) / 1000 } : {};
    this.drawing.draw({ ...state, ...elapsed });
    if (state.running) this.doing(`${progress(state)}  ·  ${Math.floor(elapsed.elapsed)} s`);
    const sentence = state.running
      ? progress(state).replace(/:.*/, "")
      : state.conclusion === null ? "There is no conclusion." : `Answer: ${state.conclusion}`;
    if (sentence !== this.said) this.say(this.said = sentence);
  }

  /** All that there is to see of a server that does not show its searches. */
  answer(conclusion, reasoning) {
    const close = conclusion && `<CONCLUSION> ${conclusion} </CONCLUSION>`;
    const text = [reasoning, close].filter(Boolean).join("\n");
    this.state = { ...this.state, running: false, conclusion: conclusion || null, text };
    this.draw();
  }

  /** No more will come. */
  end() {
    clearInterval(this.timer);
    if (this.state.id) this.offer();
  }

  /** It was ended before there was an answer. */
  stop() {
    clearInterval(this.timer);
    this.state = { ...this.state, running: false };
    this.drawing = createView(this.view, { answer: false });
    this.drawing.draw(this.state);
    this.view.prepend(make("p", "stopped", "Stopped before there was an answer."));
    this.say(this.said = "Stopped.");
  }

  offer() {
    const { id } = this.state;
    const link = make("a", "", "Link to this search");
    link.href = `?trace=${encodeURIComponent(id)}`;
    const save = make("button", "plain", "Download the trace");
    save.type = "button";
    save.addEventListener("click", () => download(this.state));
    this.actions.replaceChildren(link, save);
  }
}

function download({ running, restarts, ...trace }) {
  const url = URL.createObjectURL(new Blob([`${JSON.stringify(trace)}\n`], { type: "application/json" }));
  const link = make("a");
  link.href = url;
  link.download = `trace-${trace.id}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function earlierLine({ role, text }) {
  return make("p", "earlier", `${role}: ${text.replace(TAG, " ").replace(/ {2,}/g, " ").trim()}`);
}

function make(tag, name = "", text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
}
