"""Search: more compute at answer time for a better answer. Pure async Python."""

from stagebeam.search.run import answer, check_prompt, events, trace_id_of
from stagebeam.search.settings import SearchSettings
from stagebeam.search.trace import Trace

__all__ = ["SearchSettings", "Trace", "answer", "check_prompt", "events", "trace_id_of"]
