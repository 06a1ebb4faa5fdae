"""A stream of the OpenAI API that goes on from a second server where the first one broke off."""
import json

# A stream with these says more than its text, which cannot be cut at a character.
NOT_CUT = ("logprobs", "prompt_logprobs", "return_token_ids", "echo", "tools")
# What a server says when another one would have answered.
ELSEWHERE = {"loading", "draining", "stalled", "device_lost", "unavailable"}


class Broken(Exception):
    """A server ended a stream with an error of its own: another server may know better."""


def is_repeatable(body):
    """A second try of this request says the same, and its stream can be cut anywhere: one choice, drawn from nothing or
    from a seed, and nothing but text."""
    try:
        request = json.loads(body)
    except ValueError:
        return False
    return (isinstance(request, dict) and request.get("n") in (None, 1) and not isinstance(request.get("prompt"), list)
            and (request.get("temperature") == 0 or request.get("seed") is not None)
            and not any(request.get(field) for field in NOT_CUT))


class Replay:
    """The events of a stream across tries: those of a later try lose what the client already has.

    Counted in characters of the answer, for a second try may cut it into other pieces. id and created stay the first's.
    begin() before each try, events(bytes) for what comes of it; nothing more is to come when `done`.
    """

    def __init__(self):
        self.sent = 0          # characters of the answer that the client has
        self.kept = {}         # id and created of the first event
        self.opened = False    # the client has the event with the role
        self.finished = False  # the client has the event with the finish reason
        self.counted = False   # the client has the event with the usage
        self.done = False      # the client has [DONE]
        self.broken = None     # of this try: the error that a server ended it with
        self.skip = 0          # characters of this try that the client has
        self.rest = b""        # of this try: an event that is not whole yet

    def begin(self):
        self.skip = self.sent
        self.rest = b""
        self.broken = None

    def events(self, piece):
        """What to pass on: whole events only. `broken` then says whether this try has failed."""
        *events, self.rest = (self.rest + piece).split(b"\n\n")
        passed = b""
        for event in events:
            try:
                out = self._event(event)
            except Broken as error:
                self.broken = error
                break
            if out:
                passed += out + b"\n\n"
        return passed

    def _event(self, event):
        """The bytes for the client, or None."""
        if self.done:
            return None
        if not event.startswith(b"data: {"):
            self.done = event == b"data: [DONE]"
            return event  # or a comment
        data = json.loads(event[6:])
        if "error" in data:
            if (data["error"] or {}).get("code") in ELSEWHERE:
                raise Broken(data["error"].get("message"))
            return event
        if not self.kept:
            self.kept = {key: data[key] for key in ("id", "created") if key in data}
        if data.get("choices"):
            event = self._choice(data, data["choices"][0], event)
        elif "choices" in data and self.counted:
            return None
        elif "choices" in data:
            self.counted = True
        if event is None:
            return None
        if all(data.get(key) == value for key, value in self.kept.items()) and not event == b"":
            return event
        return b"data: " + json.dumps(data | self.kept, ensure_ascii=False, separators=(",", ":")).encode()

    def _choice(self, data, choice, event):
        """The event as it came, b"" when `data` was changed, None when the client has all of it."""
        place, key = (choice["delta"], "content") if "delta" in choice else (choice, "text")
        text = place.get(key) or ""
        known = min(self.skip, len(text))
        self.skip -= known
        ends = choice.get("finish_reason") is not None
        if (ends and self.finished) or (not ends and known == len(text) and (text or self.opened)):
            return None
        self.sent += len(text) - known
        self.opened = True
        self.finished = ends
        if known:
            place[key] = text[known:]
            return b""
        return event
