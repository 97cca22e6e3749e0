// Events become the state that the viewer draws: a trace's JSON, of which not all is known yet.
// An open stage has `winner: null`; `running` says that more will come. Mirrors search/fold.py.

/** The state before the first event. `asked` holds what is known of the question and its search. */
export function begin(asked = {}) {
  return {
    ...asked, stages: [], retraces: [], limited: null, text: "", conclusion: null, problems: [],
    usage: null, running: true, restarts: 0,
  };
}

/** The state after one more event, in the JSON of search/event_json.py; `state` stays as it is. */
export function tell(state, event) {
  switch (event.type) {
    case "stage_opened":
      return {
        ...state,
        stages: [...state.stages, {
          visit: event.visit, stage: event.stage, planned: event.planned, candidates: [],
          matches: [], winner: null, usage: null,
        }],
      };
    case "candidate_finished":
      return changed(state, event.visit, (stage) => ({
        candidates: [...stage.candidates, event.candidate].sort((a, b) => a.index - b.index),
      }));
    case "candidates_scored":
      return changed(state, event.visit, (stage) => ({
        candidates: stage.candidates.map((candidate) => ({
          ...candidate, score: event.scores[candidate.index] ?? candidate.score,
        })),
      }));
    case "match_decided":
      return changed(state, event.visit, (stage) => ({ matches: [...stage.matches, event.match] }));
    case "stage_decided":
      return decided(state, event);
    case "retraced":
      return { ...state, retraces: [...state.retraces, event.retrace] };
    case "limit_reached":
      return { ...state, limited: event.limit };
    case "restarted":
      return {
        ...state, stages: [], retraces: [], limited: null, text: "", restarts: state.restarts + 1,
      };
    case "answered":
      return { ...event.trace, running: false, restarts: state.restarts };
    default: // of a later release
      return state;
  }
}

function decided(state, event) {
  const next = changed(state, event.visit, (stage) => ({
    winner: event.winner,
    usage: event.usage,
    candidates: stage.candidates.map((candidate) => ({
      ...candidate, merged_into: event.merged_into[candidate.index] ?? null,
    })),
  }));
  const stage = next.stages.find((each) => each.visit === event.visit);
  const winner = stage?.candidates.find((candidate) => candidate.index === event.winner);
  return { ...next, text: state.text + (winner?.text ?? "") };
}

function changed(state, visit, change) {
  return {
    ...state,
    stages: state.stages.map((each) => each.visit === visit ? { ...each, ...change(each) } : each),
  };
}
