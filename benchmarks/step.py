"""Our whole step against TRL's GRPOTrainer on the testbed.

Ours is rollout, grading, eight updates, and everything logged: metrics, wandb offline, every ten
steps a ledger and a token record. Same model, prompts, group size, updates, optimizer and loss
(clipped, token mean); each side samples its own responses. Ours runs with
update.micro_batch_tokens=2048, so that the pass over the whole batch before the updates pads
little.

* fixed length: nobody may stop before NEW tokens, so both process the same number of tokens;
* varying length: the model stops when it likes, at most LIMIT tokens.

Start-up is not counted: the peer's time a step is the difference between steps that its callback
reports, and our grader's workers, of which the peer has none, start before the first step. The
second ratio leaves out our step in ten that is looked at, for which the peer has no counterpart.

    pip install -c constraints.txt -e '.[run,benchmarks]' && python benchmarks/step.py
"""

import os
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from common import machine, one_step, testbed_model

NEW, LIMIT = 32, 64
PROMPTS, GROUP, UPDATES, STEPS, ROUNDS = 32, 8, 8, 10, 3
QUESTION = "State the final answer to the following arithmetic problem: {} =\n"


def no_early_end(model, tokenizer) -> None:
    end = torch.tensor([tokenizer.eos_token_id])
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: logits.index_fill(-1, end, -1e9))


def questions(count: int) -> list[tuple[str, str]]:
    """Sums of two to six terms, so that worked answers differ in length as the testbed's do."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        terms = rng.integers(0, 10, size=2 + i % 5)
        signs = rng.choice([-1, 1], size=len(terms) - 1)
        text = str(terms[0]) + "".join(f" {'+' if s > 0 else '-'} {t}" for s, t in zip(signs, terms[1:]))
        made.append((QUESTION.format(text), str(terms[0] + int(signs @ terms[1:]))))
    return made


def ours(fixed: bool) -> tuple[list[float], list[float], float]:
    """Seconds of each step, of those that are not looked at, and the mean response length."""
    import json
    from pathlib import Path

    from cegppo import config
    from cegppo.problems import grader
    from cegppo.record.run import Record, write_tokens
    from cegppo.state import build

    folder, *_ = testbed_model()
    with tempfile.TemporaryDirectory() as where:
        problems = Path(where) / "problems.jsonl"
        problems.write_text(
            "".join(json.dumps({"problem": q.strip(), "answer": a}) + "\n" for q, a in questions(PROMPTS * (STEPS + 2)))
        )
        experiment = Path(where) / "bench.yaml"
        experiment.write_text(
            f"prompts_per_step: {PROMPTS}\ngroup_size: {GROUP}\nupdates_per_step: {UPDATES}\nthreads:"
            f" {torch.get_num_threads()}\nmodel: {{path: {folder}}}\ndata: {{train: [{{file: {problems}}}]}}\nupdate:"
            f" {{lr: 1.0e-4, micro_batch_tokens: 2048}}\nrollout: {{max_tokens: {NEW if fixed else LIMIT}}}\n"
        )
        loaded = config.load(experiment, [f"run_dir={where}/run", "wandb.mode=offline"])[0]
        state, record = build(loaded), Record(loaded)
        record.begin(0)
        grader.grade([(r"\frac{1}{2}", "0.5")], loaded.grader)
        if fixed:
            no_early_end(state.policy.model, state.policy.tokenizer)
        times, rows = [], []
        for n in range(STEPS + 1):
            start = time.perf_counter()
            done = one_step(state)
            rows.append(done.line)
            if done.tokens is not None:
                write_tokens(loaded.folder, n + 1, done.tokens)
            record.log(n + 1, rows[-1])
            times.append(time.perf_counter() - start)
        record.close("finished")
    looked = ["ledger/predicted" in row for row in rows[1:]]
    assert any(looked)  # one of the timed steps carries a ledger and a token record
    plain = [seconds for seconds, slow in zip(times[1:], looked) if not slow]
    return times[1:], plain, statistics.mean(row["length/mean"] for row in rows[1:])


def theirs(fixed: bool) -> tuple[list[float], float]:
    """The same of TRL: one step of ours is a generation and UPDATES optimizer steps of theirs."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from cegppo.problems.reward import final_answer

    _, model, tokenizer = testbed_model()
    if fixed:
        no_early_end(model, tokenizer)
    marks, lengths = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step % UPDATES == 0:
                marks.append(time.perf_counter())

        def on_train_end(self, args, state, control, **kwargs):
            marks.append(time.perf_counter())

    def reward(completions, answer, completion_ids, **kwargs):
        lengths.extend(map(len, completion_ids))
        return [float(final_answer(text) == right) for text, right in zip(completions, answer)]

    data = Dataset.from_list([{"prompt": q, "answer": a} for q, a in questions(PROMPTS * (STEPS + 2))])
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, fp16=False, report_to=[], save_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=PROMPTS * GROUP // UPDATES, gradient_accumulation_steps=1,
        steps_per_generation=UPDATES,
        num_generations=GROUP, num_iterations=1, max_steps=(STEPS + 1) * UPDATES,
        max_completion_length=NEW if fixed else LIMIT,
        learning_rate=1e-4, lr_scheduler_type="constant", beta=0.0, epsilon=0.2, loss_type="dapo",
        scale_rewards="group",
        temperature=1.0, top_p=1.0, top_k=0, max_grad_norm=1.0, logging_steps=UPDATES, gradient_checkpointing=False,
        seed=0,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)  # its lines are not part of the comparison's output
    trainer.train()
    return [b - a for a, b in zip(marks, marks[1:])][1:], statistics.mean(lengths)


def main() -> None:
    print(machine(), "\n")
    print(f"{PROMPTS} prompts × {GROUP} responses, {UPDATES} updates a step, {STEPS} steps after one of warm-up\n")
    print("| answers | ours | not looked at | mean tokens | TRL | mean tokens | ours / TRL | not looked at / TRL |")
    print(f"|{'---|' * 8}")
    for name, fixed in ((f"exactly {NEW} tokens", True), (f"natural, at most {LIMIT}", False)):
        rounds = []
        for _ in range(ROUNDS):  # in turn, so that a drift of the machine hits both alike
            (a, plain, a_len), (b, b_len) = ours(fixed), theirs(fixed)
            rounds.append((statistics.mean(a), statistics.mean(plain), a_len, statistics.mean(b), b_len))
        a, plain, a_len, b, b_len = (statistics.median(column) for column in zip(*rounds))
        ratios = [sorted(r[which] / r[3] for r in rounds) for which in (0, 1)]
        words = [f"{statistics.median(r):.2f} [{r[0]:.2f}, {r[-1]:.2f}]" for r in ratios]
        print(
            f"| {name} | {a:.3f} s | {plain:.3f} s | {a_len:.1f} | {b:.3f} s | {b_len:.1f} | {words[0]} | {words[1]} |",
            flush=True,
        )


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "disabled")
    sys.exit(main())
