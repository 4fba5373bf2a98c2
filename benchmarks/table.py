"""What is faster than what, as a table made of benchmarks/measured: python -m benchmarks.table"""

import json
from pathlib import Path

from deeper_layers.report.names import topic

MEASURED = Path(__file__).with_name("measured")
HEAD = (
    "| what | beside | ratio | agreement | command |",
    "|---|---|---|---|---|",
)


def main() -> None:
    print("\n".join(rows()))


def rows() -> list[str]:
    """The lines of the table, head included."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(MEASURED.glob("*.json"))}
    agreements = [found.pop(name) for name in list(found) if name.startswith("sweep-equal-")]
    lines = [line for name, content in found.items() for line in _lines(name.split("-")[0], content)]
    return [*HEAD, *lines, *_agreement(agreements)]


def _agreement(contents: list[dict]) -> list[str]:
    """One line for what `--agreement` compared, task by task."""
    if not contents:
        return []
    families = [family for content in contents for family in content["families"].values()]
    names = ("choices", "choices_that_differ", "ties_that_differ", "log_likelihoods", "further_apart_than_a_tie")
    total = {name: sum(family[name] for family in families) for name in names}
    largest, relative = (max(family[f"largest_difference{end}"] for family in families) for end in ("", "_relative"))
    tasks = map(_asked, contents)
    return [
        _line(
            f"the same answers as lm-eval: {'; '.join(tasks)}; {sum(c['items'] for c in contents):,} items, "
            f"{' and '.join(sorted({c['dtype'] for c in contents}))}, {max(f['cuts'] for f in families)} pruned models",
            "lm-eval's HFLM on each",
            "",
            f"{total['choices_that_differ']:,} of {total['choices']:,} answers differ ({total['ties_that_differ']:,} "
            f"ties besides); log-likelihoods within {largest:.0e}, {total['further_apart_than_a_tie']:,} of "
            f"{total['log_likelihoods']:,} further apart than 1e-4, none by more than {relative:.0e} of its size"
            + _furthest(max(families, key=lambda family: family["largest_difference"]).get("where_furthest")),
            "`python -m benchmarks.sweep equal-TASK --tasks TASK --agreement --rules simple,similarity --dtype float32 "
            "--datasets FOLDER`",
        )
    ]


def _furthest(worst: dict | None) -> str:
    """How exact the sweep and HFLM each are where they are furthest apart."""
    if worst is None:
        return ""
    error = worst["largest_from_float64"]
    return (
        f"; where furthest apart ({worst['largest_difference']:.1e}, of up to {worst['largest_size']:,.0f} nats), "
        f"the sweep is within {error['sweep']:.1e} of float64 and HFLM within {error['hflm']:.1e}"
    )


def _lines(kind: str, content: dict) -> list[str]:
    if kind in ("families", "damaged", "rebuilt", "verdicts", "prompts", "predicted", "unasked"):
        # on other pages, or on none
        return []
    command, dtype = f"`{content['command']}`", content["dtype"]
    if kind == "similarity":
        faster, passes = content["times_faster_than_one_run_a_size"], content["bare_passes"]
        return [
            _line(
                f"every angular distance, {dtype}",
                "one run for each block size",
                f"**{faster:.0f} times faster**; {passes:.2f} bare passes",
                f"within {content['largest_difference_from_float64_loop']:.0e} of a plain loop in float64",
                command,
            )
        ]
    if kind == "gained":
        row = min(content["rows"], key=lambda row: abs(row["ideal"] - 0.75))
        whole = content["rows"][0]
        times = {way: 1 / share[0] for way, share in row["share_of_time"].items()}
        return [
            _line(
                f"{content['model']}: {row['size']} of {content['layers']} layers dropped (simple), {dtype}",
                "the whole model",
                f"prompts **{times['prefill']:.2f} times faster**, answers {times['decode']:.2f}, "
                f"{content['batch']} at once {times['decode_many']:.2f}; ideal {1 / row['ideal']:.2f}",
                f"{row['bytes'] / whole['bytes']:.0%} of the bytes",
                command,
            )
        ]
    if kind == "streaming":
        swept, memory = content["parts"]["sweep"], content["parts"]["in_memory"]
        held = f", in a process that may have {content['memory_allowed'] / 1e9:.0f} GB" * content["memory_held_to"]
        return [
            _line(
                f"{swept['cuts']} pruned models (simple) of a random Llama of {content['bytes'] / 1e9:.1f} GB, "
                f"{content['items']} BoolQ items, {dtype}, its layers on disk{held}",
                "the same with the model in memory",
                f"{swept['seconds'] / memory['seconds']:.2f} of its time; weights read {content['reads_a_round']:.2f} "
                f"times{_beside_offload(content)}",
                f"equal to the last bit: {_yes(content['equal_to_the_bit'])}",
                command,
            )
        ]
    if kind == "searching":
        left = content["layers"] - content["size"]
        return [
            _line(
                f"search by loss, {rule}, down to {left} of {content['layers']} layers, {content['tokens']:,} tokens, "
                f"{dtype}",
                "a loop over the candidates, in the same batch",
                f"**{found['times_faster']:.1f} times faster**; {found['bare_passes']:.0f} bare passes",
                "the same layers in the same order",
                command,
            )
            for rule, found in content["rules"].items()
        ]
    if kind == "generation":
        what = (
            f"{topic(content['tasks'])} generated, {content['items']} items, {dtype}, "
            f"{len(content['cuts'])} pruned models"
        )
        texts = f"of {content['texts']} texts"
        agreed = f"{content['texts_equal']} {texts} equal"
        sides = [("HFLM on each, in batches", content["times_faster_than_hflm"], agreed)]
        if by_vllm := content.get("vllm"):
            told = f"vLLM {by_vllm['version']} on each, written to a folder and opened"
            sides.append((told, by_vllm["times_faster"], f"{by_vllm['texts_equal']} {texts} of vLLM equal to HFLM's"))
        return [
            _line(what, f"lm-eval's {beside}", f"**{faster:.1f} times faster**", agreement, command)
            for beside, faster, agreement in sides
        ]
    if kind == "healing":
        return [
            _line(
                f"healing on packed sequences of {content['length']:,} tokens, {content['quantization'] or dtype}",
                "Trainer and peft on padded documents",
                f"**{content['times_faster_than_padded']:.1f} times faster** (tokens that are no padding); "
                f"{content['of_bare']:.2f} of a bare loop",
                "",
                command,
            ),
            *(
                _line(
                    f"healing {what}, {content['quantization'] or dtype}: {content['cut']}",
                    "healing as in the paper, same tokens",
                    f"{content[name]:.2f} of its tokens a second",
                    "",
                    command,
                )
                for name, what in (
                    ("auxiliary_of_ours", "with the auxiliary loss"),
                    ("above_of_ours", "above the cut only"),
                    ("distill_of_ours", "by distillation"),
                )
                if name in content
            ),
        ]
    if kind == "widened":
        faster, kept = content["times_faster"], content["quantization"] or dtype
        return [
            _line(
                f"{content['model']}, {kept}, without arithmetic of 16 bits ({content['provenance']['device']}): "
                f"a step of healing on {content['length']} tokens; a sweep, {_asked(content)}, {content['items']} "
                f"items, {content['pruned_models']} pruned models",
                "PyTorch's own products of 16 bits",
                f"healing **{faster['there_and_back']:.0f} times faster**, the sweep **{faster['sweep']:.1f} times**; "
                f"a pass forwards {faster['forwards']:.1f}",
                f"cosine of the gradients {content['cosine_of_gradients']:.4f}; log-likelihoods "
                f"{content['log_likelihoods_median_difference']:.2f} nats apart (median)",
                command,
            )
        ]
    if kind == "slicing":
        peak, equal = content["peak_bytes"], content["equal_bytes"]
        beside, faster, memory = ["a plain copy of the kept bytes"], "", ""
        if "mergekit" in peak:
            beside.append("mergekit's passthrough")
            faster = f"; **{content['times_faster_than_mergekit']:.1f} times faster** than mergekit"
            memory = f", mergekit {peak['mergekit'] / 1e6:,.0f}"
        return [
            _line(
                f"a checkpoint of {content['bytes'] / 1e9:.1f} GB ({dtype}) without {content['cut'][1]} of its "
                f"{content['layers']} layers, on disk",
                "; ".join(beside),
                f"{content['of_plain_copy']:.2f} of the copy's time{faster}; at most {peak['ours'] / 1e6:,.0f} MB in "
                f"memory{memory}",
                f"bytes equal to drop_layers and save_pretrained's: {_yes(equal['opened'])}"
                + (f"; to mergekit's: {_yes(equal['mergekit'])}" if "mergekit" in equal else ""),
                command,
            )
        ]
    return [
        _line(
            f"{_asked(content)}, {content['items']} items, {dtype}, {family['cuts']} pruned models ({rule})",
            "lm-eval's HFLM on each",
            f"**{family['times_faster_than_hflm']:.1f} times faster**; {family['bare_passes']:.2f} bare passes",
            f"{family['choices_that_differ']:,} of {family['choices']:,} answers differ; "
            f"log-likelihoods within {family['largest_difference']:.0e}",
            command,
        )
        for rule, family in content["families"].items()
    ]


def _beside_offload(content: dict) -> str:
    """The ratio to accelerate's offload under HFLM, where that was measured, and on how much."""
    if "times_faster_than_hflm" not in content:
        return ""
    return (
        f"; **{content['times_faster_than_hflm']:.0f} times faster** than HFLM over accelerate's offload, one pruned "
        f"model and {content['parts']['hflm']['items']} items of it, reckoned for all"
    )


def _asked(content: dict) -> str:
    shots = content["num_fewshot"]
    tasks = ", ".join(map(topic, content["tasks"].split(",")))
    return tasks if shots is None else f"{tasks}, {shots}-shot"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
