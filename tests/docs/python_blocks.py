"""The interpreter of a page: reads one JSON object a line, {"code", "file", "line"}, from the descriptor argv[1], runs the
code in one namespace, and answers on the descriptor argv[2] with {"error": traceback or null}. What the code prints goes
where it always goes."""
import json
import os
import sys
import traceback


def main():
    requests, answers = os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w")
    sys.argv = [""]
    namespace = {"__name__": "__main__"}
    for line in requests:
        request = json.loads(line)
        error = None
        try:
            # Empty lines in front: a traceback has the page's line numbers.
            exec(compile("\n" * (request["line"] - 1) + request["code"], request["file"], "exec"), namespace)
        except BaseException:  # SystemExit is a failure here too
            error = traceback.format_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()


main()
