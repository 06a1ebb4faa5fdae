#!/usr/bin/env python3
"""Adds up what the tests themselves reported: test_summary.py FOLDER [KIND:NAME=STATUS ...]

FOLDER holds one folder a suite with JUnit files: ctest.xml (one case a test program), gtest/*.xml (its single
cases) or pytest.xml. A program that failed without a failed case of its own (a crash, a leak, a time-out) counts as
one failure. KIND:NAME=STATUS tells of a stage and its exit status: a `check` is one case; a `step` (a build) counts
only when it failed; a `suite` only when it failed and its reports show no failure. Prints every
failure and every skipped case with its reason; the last line is the sum. Exit code 1 if anything failed or nothing ran.
"""
import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def cases_of(path):
    """(name, 'passed' | 'failed' | 'skipped', text) of each case of a JUnit file."""
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f'{case.get("classname", "")}.{case.get("name", "")}'.strip(".")
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if problem is not None or case.get("status") == "fail":
            yield name, "failed", (problem.get("message") or "") if problem is not None else ""
        elif skipped is not None or case.get("status") in ("notrun", "disabled"):
            text = (skipped.get("message") or skipped.text or "") if skipped is not None else "disabled"
            # A whole program that was skipped by what it printed: its words, not ctest's.
            if text == "SKIP_REGULAR_EXPRESSION_MATCHED":
                lines = (case.findtext("system-out") or text).splitlines()
                text = next((line for line in lines if line.startswith("no card: ")), text)
            yield name, "skipped", text
        else:
            yield name, "passed", ""


def programs(suite):
    """The cases of a ctest run: those of GoogleTest where a program wrote them, else the program as one case."""
    details = {}
    for path in sorted((suite / "gtest").glob("*.xml")):
        try:
            details[path.stem] = list(cases_of(path))
        except ElementTree.ParseError:
            details[path.stem] = [(path.stem, "failed", "its report is cut off")]
    for name, state, text in cases_of(suite / "ctest.xml"):
        name = name.split(".")[-1]
        cases = details.get(name, [])
        yield from cases
        if not cases or (state == "failed" and not any(c[1] == "failed" for c in cases)):
            yield name, state, text


def main():
    results = []
    for suite in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        rows = programs(suite) if (suite / "ctest.xml").exists() else None
        if rows is None and (suite / "pytest.xml").exists():
            rows = cases_of(suite / "pytest.xml")
        results += [(suite.name, *row) for row in rows or []]
    for argument in sys.argv[2:]:
        kind, _, rest = argument.partition(":")
        name, _, status = rest.partition("=")
        if status != "0":
            if kind != "suite" or not any(r[0] == name and r[2] == "failed" for r in results):
                results.append((kind, name, "failed", f"exit status {status}, see above"))
        elif kind == "check":
            results.append((kind, name, "passed", ""))
    for wanted in ("skipped", "failed"):
        for suite, name, state, text in results:
            if state == wanted:
                print(f"{state}: {suite}: {name}: {' '.join(text.split())[:300]}")
    count = {s: sum(r[2] == s for r in results) for s in ("passed", "failed", "skipped")}
    print(f'{count["passed"]} passed, {count["failed"]} failed, {count["skipped"]} skipped')
    return 1 if count["failed"] or not count["passed"] else 0


sys.exit(main())
