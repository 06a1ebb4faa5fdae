"""Settings, by the names and in the sections of a YAML file. The table of keys is the program's own."""
from __future__ import annotations

import os
from typing import Any

from . import _core
from .errors import ConfigError

_KEYS: dict[str, dict[str, tuple[str, str, str]]] = {}
for _section, _name, _text, _expected, _default in _core.setting_keys():
    _KEYS.setdefault(_section, {})[_name] = (_text, _expected, _default)


class Section:
    """One section of the settings; its keys are attributes. None stands for `auto` and for what is unset."""

    __slots__ = ("_name", "_settings")

    def __init__(self, settings: _core.Settings, name: str) -> None:
        object.__setattr__(self, "_settings", settings)
        object.__setattr__(self, "_name", name)

    def _path(self, key: str) -> str:
        keys = _KEYS[self._name]
        if key in keys:
            return f"{self._name}.{key}"
        others = [s for s, names in _KEYS.items() if key in names]
        near = _core.nearest(key, list(keys))
        hint = f"; did you mean {others[0]}.{key}?" if others else f"; did you mean {near}?" if near else ""
        raise AttributeError(f"{self._name}.{key}: there is no such setting{hint}", name=key, obj=self)

    def __getattr__(self, key: str) -> Any:
        return self._settings.get(self._path(key))

    def __setattr__(self, key: str, value: Any) -> None:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        self._settings.set(self._path(key), value)

    def __dir__(self) -> list[str]:
        return list(_KEYS[self._name])

    def to_dict(self) -> dict[str, Any]:
        """The section's values by key."""
        return {key: getattr(self, key) for key in _KEYS[self._name]}

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in self.to_dict().items() if k != "api_key")
        return f"{self._name}({values})"


class Config:
    """All settings: built-in values, then what suits this device, a YAML file, the environment
    (``DEEPINFER_MAX_NUM_SEQS``), and what is assigned.

    >>> config = Config()
    >>> config.gpu.max_num_seqs = 64

    A wrong name is an AttributeError that names the nearest key, a wrong value a ConfigError.
    """

    model: Section
    gpu: Section
    cpu: Section
    server: Section
    sampling: Section

    def __init__(self, **settings: Any) -> None:
        """`settings`: keys by their name alone (``max_num_seqs=64``); `model` is the model's name."""
        self._settings = _core.Settings("")
        self._update(settings)

    def _update(self, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            if name == "model":
                self.model.name = value
                continue
            sections = [s for s, names in _KEYS.items() if name in names]
            if not sections:
                near = _core.nearest(name, [k for names in _KEYS.values() for k in names])
                raise ConfigError(f"{name}: there is no such setting" + (f"; did you mean {near}?" if near else ""),
                                  "config", name)
            setattr(getattr(self, sections[0]), name, value)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Config:
        """Reads a file, or one of those that come with the package: ``configs/nvidia_5090.yaml``.

        Raises ConfigError with file and line for what is wrong in it.
        """
        config = cls.__new__(cls)
        config._settings = _core.Settings(os.fspath(path))
        return config

    @classmethod
    def _of_gpu(cls, index: int) -> Config:
        config = cls.__new__(cls)
        config._settings = _core.Settings("", index)
        return config

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> Config:
        """From ``{"gpu": {"max_num_seqs": 64}}``; what is left out is as in Config()."""
        config = cls()
        for section, keys in values.items():
            for key, value in keys.items():
                if getattr(getattr(config, section), key) != value:  # the rest keeps where it comes from
                    setattr(getattr(config, section), key, value)
        return config

    def __reduce__(self) -> Any:
        return Config.from_dict, (self.to_dict(),)

    def __getattr__(self, name: str) -> Section:
        if name in _KEYS:
            return Section(self._settings, name)
        near = _core.nearest(name, list(_KEYS))
        raise AttributeError(f"{name}: there is no such section of settings" + (f"; did you mean {near}?" if near else ""),
                             name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "_settings":
            raise AttributeError(f"{name}: sections cannot be replaced; assign to their keys", name=name, obj=self)
        object.__setattr__(self, name, value)

    def __dir__(self) -> list[str]:
        return [*_KEYS, "from_yaml", "from_dict", "to_yaml", "to_dict"]

    def to_yaml(self) -> str:
        """YAML that loads again, each value with where it comes from; API keys are left out."""
        return self._settings.yaml()

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """All values by section and key."""
        return {name: Section(self._settings, name).to_dict() for name in _KEYS}

    def __repr__(self) -> str:
        return "Config(" + ", ".join(repr(Section(self._settings, name)) for name in _KEYS) + ")"
