"""Train the demo model with its MTP layer, and export it.

python -m models.demo.train [--out DIR] [--run-dir RUN] [--resume]

It uses plain PyTorch on a CPU, in bfloat16 autocast over float32 weights; the engine uses bfloat16, too. The run folder
has the last checkpoint and log.jsonl, from which `--resume` continues.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from models.demo.config import text_config
from models.demo.data import PAD, Encoder, Example, batches, example, pad
from models.demo.evaluate import evaluate
from models.demo.export import export
from models.demo.language_model import DemoModel
from models.demo.run import DRAFT_WEIGHTS, Run, draft_losses, learning_rate, weighted_loss
from models.demo.tokenizer import build_tokenizer

PACKAGED = Path("service/penstock/demo_model")
WARM_UP_STEPS = 60


def losses_of(model: DemoModel, group: list[Example], drafts: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total loss of a batch and its parts: answer (next token), one per draft, balance (1 is even)."""
    ids = torch.tensor(pad([item.ids for item in group], PAD))
    weights = torch.tensor(pad([item.weights for item in group], 0.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, balance = model.model(ids)
        total = weighted_loss(model.lm_head, hidden[:, :-1], ids[:, 1:], weights[:, 1:])
        parts = {"loss": total.detach(), "balance": balance.detach()}
        if drafts:
            outs, draft_balance = model.drafts(ids, hidden, drafts)
            balance = balance + draft_balance
            for index, draft in enumerate(draft_losses(model.lm_head, outs, ids, weights)):
                parts[f"draft_{index + 1}"] = draft.detach()
                total = total + DRAFT_WEIGHTS[index] * draft
    return total + model.config["router_aux_loss_coef"] * balance, parts


def train(run: Run, encoder: Encoder, arguments: argparse.Namespace) -> None:
    started = time.monotonic() - run.seconds
    for next_seed, group in batches(lambda seed: example(seed, encoder), run.next_seed, arguments.tokens_per_batch):
        run.next_seed = next_seed
        if run.step >= arguments.steps:
            break
        parts = run.train_step(group, learning_rate(run.step, arguments.steps, arguments.rate, WARM_UP_STEPS))
        run.seconds = time.monotonic() - started
        if run.step % 20 == 0:
            run.log_losses(parts)
        if run.step % arguments.save_every == 0:
            run.save()
        if run.step % arguments.evaluate_every == 0:
            run.log(evaluate(run.model, encoder, 24, (0, 8, 16, 32, None)))
    run.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PACKAGED, help="folder to export to")
    parser.add_argument("--run-dir", type=Path, default=Path("build/demo_model"), help="checkpoint and log")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in the run folder")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--tokens-per-batch", type=int, default=6144, help="padding included")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--evaluate-every", type=int, default=150, help="steps")
    parser.add_argument("--save-every", type=int, default=50, help="steps")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    folder, encoder = arguments.run_dir, Encoder(build_tokenizer())
    run = Run(DemoModel(text_config()), losses_of, folder / "run.pt", folder / "log.jsonl")
    if arguments.resume:
        run.load()
    train(run, encoder, arguments)
    run.log({"final": evaluate(run.model, encoder, 100)})
    export(run.model, arguments.out)


if __name__ == "__main__":
    main()
