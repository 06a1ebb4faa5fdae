"""jinja2 with the settings that Hugging Face transformers uses for chat templates: the oracle of the tests."""

import copy
import datetime
import json

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

NOW = 1_753_000_000  # 2025-07-20 08:26:40 UTC; the tools run with TZ=UTC


class GenerationBlock(jinja2.ext.Extension):
    """{% generation %}: renders its body like a call block."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


class RaisedByTemplate(jinja2.exceptions.TemplateError):
    pass


class RestrictedNamespace(jinja2.utils.Namespace):
    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            RestrictedNamespace.check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        RestrictedNamespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"underscore-prefixed attribute {name!r}")


class OnlyCallableDict:
    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )

    def raise_exception(message):
        raise RaisedByTemplate(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None).strftime(format)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    env.globals["dict"] = OnlyCallableDict()
    env.globals["namespace"] = RestrictedNamespace
    return env


_ENVIRONMENT = environment()
_COMPILED = {}


def render(request):
    """("text", text), ("raised", message of raise_exception) or ("error", message)."""
    try:
        source = request["template"]
        if source not in _COMPILED:
            _COMPILED[source] = _ENVIRONMENT.from_string(source)
        variables = {"documents": None, "add_generation_prompt": request.get("add_generation_prompt", True)}
        for token in ("bos_token", "eos_token"):
            if request.get(token):
                variables[token] = request[token]
        variables.update(copy.deepcopy(request.get("extra", {})))  # `list | indent` changes the list
        variables["messages"] = request.get("messages", [])
        variables["tools"] = request.get("tools") or None
        text = _COMPILED[source].render(**variables)
        text.encode("utf-8")
        return "text", text
    except RaisedByTemplate as e:
        return "raised", str(e)
    except Exception as e:  # whatever Python says: the template fails
        return "error", f"{type(e).__name__}: {e}"
