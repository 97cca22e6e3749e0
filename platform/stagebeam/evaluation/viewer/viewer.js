// Draws one answer: what was proposed, compared and chosen, and what it cost. Knows a trace's JSON
// (finished, or as fold.js builds it) and an element to draw into, and nothing of where it is from.
// Everything that a model or a person wrote becomes a text node.

const STAGES = ["SUMMARY", "CAPTION", "REASONING", "CONCLUSION"];
const TITLES = {
  SUMMARY: "Summary", CAPTION: "Caption", REASONING: "Reasoning", CONCLUSION: "Conclusion",
  SENTENCE: "Sentence", ANSWER: "Whole answers", REST: "The rest, after the limit",
};
const PLURALS = {
  SUMMARY: "summaries", CAPTION: "captions", REASONING: "reasonings", CONCLUSION: "conclusions",
  SENTENCE: "sentences", ANSWER: "answers", REST: "the rest",
};
const METHODS = {
  greedy: "greedy", majority: "majority", best_of_n: "best of N", sentence_beam: "sentence beam",
  stage_beam: "stage beam", retrace: "retracing",
};
const BY = { majority: "a tie; more votes", logprob: "a tie; likelier text", rule: "by rule" };
const TAG = /<(\/?)(SUMMARY|CAPTION|REASONING|CONCLUSION)>/g;
const OPEN_MATCHES = 6; // more than this are folded away, and all of them on a narrow screen
const WIDE = matchMedia("(min-width: 60rem)");

/**
 * A view into `root`. `draw(state)` may be called as often as something happens: only stages that
 * changed are drawn again. `answer: false` leaves the answer itself out, for pages that show it.
 */
export function createView(root, { answer = true } = {}) {
  const head = element("div", "sb-head");
  const notes = element("div", "sb-notes");
  const stages = element("div", "sb-stages");
  const facts = element("p", "sb-facts");
  root.classList.add("sb-view");
  root.replaceChildren(...(answer ? [head] : []), notes, stages, facts);
  const drawn = { head: "", notes: "", facts: "", stages: [] };

  function draw(state) {
    const columns = inColumns(state);
    stages.classList.toggle("sb-columns", columns);
    update(drawn, "head", [state.conclusion, state.running, progress(state), state.problems],
      () => head.replaceChildren(...answerOf(state)));
    update(drawn, "notes", [state.limited, state.problems, state.retraces, state.restarts],
      () => notes.replaceChildren(...notesOf(state)));
    drawStages(state, columns);
    update(drawn, "facts", [factsOf(state)], () => facts.replaceChildren(factsOf(state)));
  }

  function drawStages(state, columns) {
    const shown = columns ? asColumns(state) : state.stages;
    while (stages.children.length > shown.length) stages.lastChild.remove();
    drawn.stages.length = Math.min(drawn.stages.length, shown.length);
    shown.forEach((stage, place) => {
      const number = state.stages.filter((each) => each.stage === stage.stage).indexOf(stage);
      const goals = state.retraces.filter((each) => each.stage === stage.stage);
      const signature = JSON.stringify([stage, goals, state.running, number]);
      if (drawn.stages[place] === signature) return;
      drawn.stages[place] = signature;
      const old = stages.children[place];
      const made = stageOf(stage, { number, retraces: goals, running: Boolean(state.running) });
      keep(old, made);
      if (old) old.replaceWith(made); else stages.append(made);
    });
  }

  return { draw };
}

/** One sentence about where the search is. */
export function progress(state) {
  if (!state.running) return state.conclusion === null ? "No conclusion" : "Answered";
  const open = state.stages.filter((stage) => stage.winner === null).at(-1);
  if (!open) return state.stages.length ? "Going on" : "Waiting for the model";
  const there = open.candidates.length;
  const which = PLURALS[open.stage];
  if (open.matches.length) return `Comparing ${which}`;
  if (open.stage === "REST") return "Finishing the answer";
  if (there >= open.planned) return open.planned > 1 ? `Judging ${which}` : "Going on";
  return open.planned > 1 ? `Writing ${which}: ${there} of ${open.planned}` : `Writing ${which}`;
}

/** The probability that log-odds stand for. */
export function probability(logOdds) {
  return 1 / (1 + Math.exp(-logOdds));
}

// Layout

function inColumns(state) {
  const staged = state.stages.filter((stage) => stage.stage !== "REST");
  if (!staged.length) return Boolean(state.running) && ["stage_beam", "retrace", undefined].includes(state.method);
  return staged.every((stage) => STAGES.includes(stage.stage));
}

/** All four, those that were not reached too, and what was finished after a limit. */
function asColumns(state) {
  const found = STAGES.map((name) => state.stages.find((stage) => stage.stage === name)
    ?? { stage: name, planned: 0, candidates: [], matches: [], winner: null, usage: null });
  return [...found, ...state.stages.filter((stage) => stage.stage === "REST")];
}

function update(drawn, name, parts, redraw) {
  const signature = JSON.stringify(parts);
  if (drawn[name] === signature) return;
  drawn[name] = signature;
  redraw();
}

/** What a person opened or closed stays so, and what was there already does not arrive again. */
function keep(old, made) {
  if (!old || old.dataset.stage !== made.dataset.stage) return;
  for (const fold of made.querySelectorAll("details")) {
    const before = old.querySelector(`details[data-kind="${fold.dataset.kind}"]`);
    if (before) fold.open = before.open;
  }
  for (const card of made.querySelectorAll(".sb-candidate")) {
    const before = old.querySelector(`.sb-candidate[data-index="${card.dataset.index}"]`);
    card.classList.toggle("sb-still", before !== null);
  }
}

// The answer and what is to be known about it

function answerOf(state) {
  if (state.running) return [element("p", "sb-progress", progress(state))];
  if (state.conclusion !== null) return [element("p", "sb-conclusion", state.conclusion)];
  return [element("p", "sb-conclusion sb-none", "There is no conclusion.")];
}

function notesOf(state) {
  const notes = [];
  if (state.restarts) notes.push("A replica was lost; the search started over.");
  if (state.limited) notes.push(`Cut short: the answer's limit of ${state.limited} was reached.`);
  if (state.problems.length) {
    notes.push(`Not a whole staged answer: ${state.problems.join(", ").replaceAll("_", " ")}.`);
  }
  return notes.map((note) => element("p", "sb-note", note));
}

function factsOf(state) {
  const written = state.usage?.decode_tokens
    ?? state.stages.flatMap((stage) => stage.candidates).reduce((sum, c) => sum + c.tokens, 0);
  const facts = [];
  if (state.method) facts.push(methodOf(state));
  const spent = state.usage?.seconds ?? state.elapsed;
  if (spent !== undefined) facts.push(`${state.usage ? seconds(spent) : Math.floor(spent)} s`);
  if (state.usage || state.running) facts.push(`${count(written, "token")} written`);
  const usage = state.usage;
  if (usage) {
    if (usage.judge_calls) {
      facts.push(`${count(usage.judge_tokens, "token")} read by the judge`);
    }
    if (usage.judge_failures) facts.push(`${count(usage.judge_failures, "judge failure")}`);
    facts.push(count(usage.sequential_passes, "sequential pass", "sequential passes"));
  }
  return facts.join("  ·  ");
}

function methodOf(state) {
  const name = METHODS[state.method] ?? state.method;
  if (state.method === "greedy" || !state.candidates) return name;
  const n = typeof state.candidates === "number"
    ? `N = ${state.candidates}`
    : Object.entries(state.candidates).map(([k, v]) => `${TITLES[k] ?? k} ${v}`).join(", ");
  const form = state.tournament && !["none", "auto"].includes(state.tournament)
    ? `, ${state.tournament.replaceAll("_", " ")}` : "";
  return `${name}, ${n}${form}`;
}

// One stage

function stageOf(stage, { number, retraces, running }) {
  const decided = stage.winner !== null;
  const section = element("section", `sb-stage${decided ? " sb-decided" : ""}`);
  section.dataset.stage = stage.stage;
  const title = stage.stage === "SENTENCE" ? `Sentence ${number + 1}` : TITLES[stage.stage];
  const status = element("span", "sb-status", statusOf(stage, running));
  section.append(element("h3", "sb-title", title, status));

  const winner = stage.candidates.find((candidate) => candidate.index === stage.winner);
  const slot = element("div", "sb-winner");
  if (winner) slot.append(candidateOf(winner, stage, "sb-won"));
  else if (running && stage.planned > 1) slot.append(element("p", "sb-undecided", "not chosen yet"));
  section.append(slot);

  const others = stage.candidates.filter((candidate) => candidate !== winner);
  const body = element("div", "sb-others");
  body.append(...others.map((each) => candidateOf(each, stage, decided ? "sb-lost" : "")));
  if (!decided && running) body.append(...waiting(stage));
  body.append(...retraces.map(retraceOf));
  if (stage.matches.length) body.append(matchesOf(stage));
  if (stage.stage === "SENTENCE" && decided && others.length) {
    section.append(fold("others", `${count(others.length, "other")}`, body, false));
  } else section.append(body);
  section.append(element("p", "sb-cost", costOf(stage)));
  return section;
}

function statusOf(stage, running) {
  if (stage.winner !== null) {
    return stage.candidates.length > 1 ? `#${stage.winner + 1} of ${stage.candidates.length}` : "";
  }
  if (!stage.planned) return running ? "" : "not reached";
  if (!running) return "not decided";
  const there = stage.candidates.length;
  if (there < stage.planned) return `${there} of ${stage.planned}`;
  return stage.planned > 1 ? "judging" : "";
}

/** Places of candidates that are still being written. */
function waiting(stage) {
  const open = Math.max(0, stage.planned - stage.candidates.length);
  return Array.from({ length: open }, () => {
    const place = element("div", "sb-waiting");
    place.setAttribute("aria-hidden", "true");
    return place;
  });
}

function candidateOf(candidate, stage, kind) {
  const copied = candidate.merged_into !== null && candidate.merged_into !== undefined;
  const card = element("article", `sb-candidate ${kind}${copied ? " sb-copy" : ""}`);
  card.dataset.index = candidate.index;
  const head = element("header", "sb-card-head");
  head.append(element("b", "sb-number", `#${candidate.index + 1}`));
  if (kind === "sb-won") head.append(element("span", "sb-badge sb-chosen", "chosen"));
  if (copied) {
    head.append(element("span", "sb-meta", `the same as #${candidate.merged_into + 1}`));
    card.append(head);
    return card;
  }
  head.append(...metaOf(candidate, stage));
  card.append(head, ...paragraphsOf(candidate, stage.stage));
  return card;
}

function metaOf(candidate, stage) {
  const metas = [];
  const meta = (text, kind = "sb-meta") => metas.push(element("span", kind, text));
  if (!candidate.valid) meta("tags broken: loses by rule", "sb-badge sb-bad");
  if (candidate.finish === "length") meta("cut off", "sb-badge sb-bad");
  meta(count(candidate.tokens, "token"));
  if (candidate.score !== null && candidate.score !== undefined) {
    meta(`score ${signed(candidate.score)}`);
  } else {
    meta(`log-prob. ${signed(candidate.logprob / Math.max(candidate.tokens, 1))}`);
    metas.at(-1).title = "Mean log-probability of a token";
  }
  const copies = stage.candidates.filter((each) => each.merged_into === candidate.index).length;
  if (copies) meta(`written ${copies + 1} times`);
  if (candidate.parent !== null && candidate.parent !== undefined) {
    meta(`continues #${candidate.parent + 1}`);
  }
  return metas;
}

/** A text without its tags where they are in order, and as it came where they are not. */
function paragraphsOf(candidate, stage) {
  if (!candidate.valid) return [element("p", "sb-text", candidate.text.trim())];
  const pieces = candidate.text.split(TAG); // text, slash, name, text, slash, name, ...
  const found = [];
  for (let at = 0; at < pieces.length; at += 3) {
    const label = at && !pieces[at - 2] && stage !== pieces[at - 1] ? TITLES[pieces[at - 1]] : null;
    const text = pieces[at].trim();
    if (!text) continue;
    const paragraph = element("p", "sb-text");
    if (label) paragraph.append(element("span", "sb-label", label), " ");
    paragraph.append(text);
    found.push(paragraph);
  }
  return found.length ? found : [element("p", "sb-text", candidate.text.trim())];
}

// Matches

function matchesOf(stage) {
  const list = element("ul", "sb-matches");
  const rounds = new Set(stage.matches.map((match) => match.round).filter(Boolean)).size;
  list.append(...stage.matches.map((match) => matchOf(match, stage.winner, rounds > 1)));
  const open = WIDE.matches && stage.matches.length <= OPEN_MATCHES;
  return fold("matches", count(stage.matches.length, "match", "matches"), list, open);
}

function matchOf(match, chosen, tellRound) {
  const first = match.winner === match.a;
  const [winner, loser] = first ? [match.a, match.b] : [match.b, match.a];
  const item = element("li", `sb-match${winner === chosen ? " sb-of-winner" : ""}`);
  const title = element("div", "sb-match-head");
  title.append(element("span", "sb-pair", element("b", "", `#${winner + 1}`), " over ",
    `#${loser + 1}`));
  if (match.decided_by !== "margin") title.append(element("span", "sb-meta", BY[match.decided_by]));
  if (tellRound && match.round) title.append(element("span", "sb-meta", `round ${match.round}`));
  item.append(title);
  if (match.decided_by !== "rule") {
    const margin = first ? match.margin : -match.margin;
    title.append(element("span", "sb-margin", `margin ${signed(margin)}`));
    // Log-odds are for `a`, which is read first in `forward` and second in `backward`.
    item.append(
      orderOf("read first", probability(first ? match.forward : -match.backward)),
      orderOf("read second", probability(first ? match.backward : -match.forward)),
    );
  }
  if (match.explanation) item.append(element("p", "sb-said", match.explanation));
  return item;
}

function orderOf(label, share) {
  const row = element("div", "sb-order");
  const bar = element("span", "sb-bar");
  const filled = element("span", share >= 0.5 ? "sb-for" : "sb-against");
  filled.style.width = `${100 * share}%`;
  bar.append(filled);
  bar.setAttribute("aria-hidden", "true");
  row.append(element("span", "sb-meta", label), bar,
    element("span", "sb-share", `${percent(share)}\u202f%`));
  return row;
}

function retraceOf(retrace) {
  const best = retrace.best === null ? "nothing had its tags" : `best score ${signed(retrace.best)}`;
  return element("p", "sb-note sb-retrace",
    `Went back to ${TITLES[retrace.back_to]}: ${best}, needed ${signed(retrace.cutoff)}.`);
}

// Pieces

function costOf(stage) {
  if (!stage.usage) return "";
  const tokens = stage.usage.decode_tokens
    || stage.candidates.reduce((sum, candidate) => sum + candidate.tokens, 0);
  return `${seconds(stage.usage.seconds)} s  ·  ${count(tokens, "token")}`;
}

function fold(kind, summary, content, open) {
  const details = element("details", "sb-fold");
  details.dataset.kind = kind;
  details.open = open;
  details.append(element("summary", "", summary), content);
  return details;
}

function element(tag, classes, ...children) {
  const made = document.createElement(tag);
  if (classes) made.className = classes.trim();
  made.append(...children.filter((child) => child !== ""));
  return made;
}

function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function signed(value) {
  const sign = value < 0 ? "\u2212" : "+";
  return `${sign}${Math.abs(value).toFixed(2)}`;
}

function seconds(value) {
  return value.toFixed(value < 9.95 ? 2 : 1);
}

/** Never 0 or 100 for what is merely likely. */
function percent(share) {
  const rounded = Math.round(100 * share);
  if (rounded === 100 && share < 1) return ">99";
  if (rounded === 0 && share > 0) return "<1";
  return String(rounded);
}
