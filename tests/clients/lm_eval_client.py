"""lm-eval's local-completions: log likelihoods by echo, and generation.   lm_eval_client.py URL TOKENIZER_FOLDER"""
import math
import sys

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

PAIRS = [("The capital of France is", " Paris"), ("The capital of France is", " Quito"),
         ("One, two, three,", " four"), ("One, two, three,", " green"), ("", "Once upon a time")]


def main():
    url, folder = sys.argv[1:]
    lm = LocalCompletionsAPI(base_url=url + "/v1/completions", model="smol", tokenizer=folder, max_length=1024,
                             tokenizer_backend="huggingface", batch_size=2, num_concurrent=2)
    scores = lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)])
    print(scores)
    assert all(math.isfinite(score) and score < 0 for score, _ in scores)
    assert scores[0][0] > scores[1][0] + 2 and scores[2][0] > scores[3][0] + 2
    assert not scores[1][1] and not scores[3][1]  # not what the model would say
    rolling = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("The sky is blue.",), 0)])
    print(rolling)
    assert math.isfinite(rolling[0]) and rolling[0] < -5
    made = lm.generate_until([Instance("generate_until", {}, ("1, 2, 3, 4, 5,", {"until": ["\n"], "max_gen_toks": 8}), 0)])
    print(made)
    assert "6" in made[0] and "\n" not in made[0]
    # What is generated greedily is greedy when it is scored.
    ((_, greedy),) = lm.loglikelihood([Instance("loglikelihood", {}, ("1, 2, 3, 4, 5,", made[0]), 0)])
    assert greedy


if __name__ == "__main__":
    main()
