"""Put ONNX Runtime Web into the wheel, so that the installed viewer needs no network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RuntimeHook(BuildHookInterface):
    """Fetches what nelf/viewer/web_runtime.py names; without npm the wheel is built without it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files, unless the source tree is installed as it stands."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        # By its path, so that nothing that nelf depends on need be here.
        path = Path(self.root, "nelf", "viewer", "web_runtime.py")
        spec = importlib.util.spec_from_file_location("viewer_runtime", path)
        assert spec is not None
        assert spec.loader is not None
        runtime = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(runtime)
        try:
            folder = runtime.runtime_folder()
        except runtime.UserError as error:
            print(f"{error} The viewer of this wheel will ask for it.", file=sys.stderr)
            return
        build_data["force_include"][str(folder)] = "nelf/viewer/runtime"
