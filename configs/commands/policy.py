"""`avtd3 policy`: describe and export published policies."""

from pathlib import Path
from typing import Annotated, Literal

from avtd3.configs.commands import options as opt

app = opt.group("Describe a policy, or export it to ONNX or torch.export.")
PolicyArgument = Annotated[
    Path,
    opt.argument(
        "POLICY",
        "Policy file, directory of policies (the newest is used), or URL of either, such as "
        "s3://BUCKET/PATH.",
    ),
]


@app.command()
def info(policy: PolicyArgument, as_json: opt.JsonOption = False) -> None:
    """Print version, inputs, actions and network of a policy."""
    from avtd3.learn.policy import Policy
    from avtd3.learn.policy_export import PolicyReport, describe_policy
    from avtd3.store.remote.background import local_policy

    with local_policy(policy) as path:
        report = PolicyReport(policy=describe_policy(Policy.load(path)))
    opt.finish(report, as_json)


@app.command()
def export(
    policy: PolicyArgument,
    out: Annotated[
        Path,
        opt.argument("OUT", "File to write, such as policy.onnx; policy.md is the model card."),
    ],
    to: Annotated[
        Literal["onnx", "torch"],
        opt.option("--to", "onnx (compared with onnxruntime), or torch (torch.export)."),
    ],
    run: Annotated[
        Path | None,
        opt.option(
            "DIR", "Run that trained the policy, for the card. Default: the run around POLICY."
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        opt.option(
            "DATASET", "Dataset for the card. Repeatable. Default: the datasets of the run."
        ),
    ] = None,
    evaluation: Annotated[
        Path | None, opt.option("FILE", "Output of avtd3 evaluate --json, for the card.")
    ] = None,
    licence: Annotated[str | None, opt.option("TEXT", "Licence, for the card.")] = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Export a policy with a model card.

    Pixel scaling and vector normalisation are part of the exported graph. See docs/policies.md.
    """
    from avtd3.learn.policy_export import CardConfig, export_policy

    opt.check_destinations(out)
    card = opt.replace(
        CardConfig(),
        run=run,
        data=None if data is None else tuple(data),
        evaluation=evaluation,
        licence=licence,
    )
    report = export_policy(policy, out, to, card)
    opt.finish(report, as_json)
