"""serve.yaml names what deepinfer_ray.py has. The application itself is tried by ray_check.py, with Ray."""
import ast
import pathlib
import re
import subprocess

import yaml

FOLDER = pathlib.Path(__file__).parents[2] / "deploy/ray"
TREE = ast.parse((FOLDER / "deepinfer_ray.py").read_text())
APPLICATION = yaml.safe_load((FOLDER / "serve.yaml").read_text())["applications"][0]


def function(name):
    return next(node for node in TREE.body if isinstance(node, ast.FunctionDef) and node.name == name)


def test_the_import_path_and_its_args():
    module, name = APPLICATION["import_path"].split(":")
    assert (FOLDER / f"{module}.py").exists()
    build = function(name)
    known = {node.args[0].value for node in ast.walk(build) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Attribute) and node.func.attr == "pop" and node.args}
    assert set(APPLICATION["args"]) == known
    classes = {node.name for node in TREE.body if isinstance(node, ast.ClassDef) and node.decorator_list}
    assert {deployment["name"] for deployment in APPLICATION["deployments"]} == classes
    documented = set(re.findall(r"^    (\w+(?:, \w+)?)  +", ast.get_docstring(build, clean=False), re.MULTILINE))
    assert {word for words in documented for word in words.split(", ")} == known


def test_the_server_takes_the_flags_that_it_gets(deepinfer):
    flags = {node.value for node in ast.walk(TREE) if isinstance(node, ast.Constant) and isinstance(node.value, str)
             and re.fullmatch(r"--[a-z-]+", node.value)} - {"--pdeathsig"}
    assert {"--uds", "--drain-timeout", "--device", "--threads"} <= flags
    said = subprocess.run([deepinfer, "serve", "--help"], text=True, capture_output=True, check=True).stdout
    for flag in flags:
        assert re.search(rf"^\s+{flag}\b", said, re.MULTILINE), flag


def test_its_health_checks_ask_routes_of_the_program(server):
    import httpx

    for path in set(re.findall(r'"http://localhost(/[a-z/]+)"', (FOLDER / "deepinfer_ray.py").read_text())):
        assert httpx.get(server.url + path).status_code == 200, path
