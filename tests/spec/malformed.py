"""62 job files that must be refused, in 12 classes: the text, the overrides, and where and how each must be refused."""

# ruff: noqa: E501  (a table reads best with a row on a line)
from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """A malformed job: `at` is `line:column` (or `#n:column` of an override), `path` the dotted key, `says` what the
    message must hold and `advice` what the hint must hold. `others` are files beside it."""

    kind: str
    name: str
    text: str | bytes
    at: str
    path: str
    says: str
    advice: str
    overrides: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()


GOOD = "model: {use: cnn}\ndata: {use: digits}\n"
PARTS = GOOD + "train:\n  epochs: 1\n"

CASES = (
    # 1. YAML that cannot be read
    Case("syntax", "tab", "model:\n\tuse: cnn\n", "2:1", "", "tab", "spaces"),
    Case("syntax", "open list", "model: {use: cnn, channels: [1, 2}\n", "1:34", "", "not closed", "]"),
    Case("syntax", "open quotes", GOOD + "name: 'x\n", "3:7", "", "quotes", "close"),
    Case("syntax", "two colons", GOOD + "name: a: b\n", "3:8", "", "`:`", "quotes"),
    Case("syntax", "indentation", GOOD + "train:\n    epochs: 1\n  seed: 0\n", "5:3", "", "line up", "indentation"),
    Case("syntax", "no colon", GOOD + "train\n", "3:1", "", "without `:`", "key: value"),
    Case("syntax", "at sign", GOOD + "name: @x\n", "3:7", "", "cannot begin with", "quotes"),
    # 2. not one mapping of text keys
    Case("document", "empty", "", "1:1", "", "empty", "init --list"),
    Case("document", "only comments", "# nothing\n", "1:1", "", "empty", "init --list"),
    Case("document", "a list", "- model\n- data\n", "1:1", "", "mapping of sections", "model:"),
    Case("document", "two documents", GOOD + "---\n" + GOOD, "3:1", "", "second document", "one document"),
    Case("document", "a number as key", GOOD + "1: x\n", "3:1", "", "not text", "quotes"),
    Case("document", "not UTF-8", b"model: {use: cnn}\nname: \xff\n", "2:7", "", "UTF-8", "UTF-8"),
    Case("document", "too deep", GOOD + "x: " + "[" * 30 + "]" * 30 + "\n", "3:23", "x" + ".0" * 19, "20 levels", "flat"),
    # 3. the same key twice
    Case("duplicate", "section", GOOD + "model: {use: mlp}\n", "3:1", "model", "twice", "line 1"),
    Case("duplicate", "nested", PARTS + "  seed: 1\n  epochs: 2\n", "6:3", "train.epochs", "twice", "line 4"),
    Case("duplicate", "flow", "model: {use: cnn, hidden: 1, hidden: 2}\ndata: {use: digits}\n", "1:30", "model.hidden", "twice", "line 1"),
    # 4. tags, anchors, aliases, merge keys
    Case("tags", "python object", "model: !!python/object/apply:os.system ['touch pwned']\n" + GOOD[18:], "1:8", "model", "tag", "plain data"),
    Case("tags", "anchor", "model: &m {use: cnn}\ndata: {use: digits}\n", "1:8", "model", "anchor", "extends"),
    Case("tags", "alias", GOOD + "name: *x\n", "3:7", "name", "alias", "write the value out"),
    Case("tags", "merge key", GOOD + "train:\n  <<: {epochs: 1}\n", "4:3", "train", "merge key", "extends"),
    Case("tags", "string tag", GOOD + "name: !!str 1\n", "3:7", "name", "tag", "remove"),
    # 5. keys nobody reads
    Case("unknown key", "section", GOOD + "trian: {epochs: 1}\n", "3:1", "trian", "unknown key", "`train`"),
    Case("unknown key", "in a section", PARTS + "  bath_size: 3\n", "5:3", "train.bath_size", "unknown key", "`batch_size`"),
    Case("unknown key", "of a model", "model:\n  use: cnn\n  chanels: [8]\n" + GOOD[18:], "3:3", "model.chanels", "unknown key", "`channels`"),
    Case("unknown key", "of the optimiser", GOOD + "optim: {lr: 1e-3, weigth_decay: 0}\n", "3:19", "optim.weigth_decay", "unknown", "`weight_decay`"),
    Case("unknown key", "two levels down", PARTS + "  monitor:\n    mod: max\n", "6:5", "train.monitor.mod", "unknown", "`mode`"),
    Case("unknown key", "elsewhere", PARTS + "  lr: 1e-3\n", "5:3", "train.lr", "unknown", "`optim.lr`"),
    Case("unknown key", "of another optimiser", GOOD + "optim: {use: sgd, betas: [0.9, 0.99]}\n", "3:19", "optim.betas", "unknown", "sgd takes"),
    # 6. values of a wrong kind
    Case("wrong type", "quoted number", PARTS + '  batch_size: "32"\n', "5:15", "train.batch_size", "whole number", "32"),
    Case("wrong type", "fraction", GOOD + "train: {steps: 2.5}\n", "3:16", "train.steps", "whole number", "write 2"),
    Case("wrong type", "float for whole", GOOD + "train: {steps: 1e3}\n", "3:16", "train.steps", "whole number", "1000"),
    Case("wrong type", "yes", PARTS + "  compile: yes\n", "5:12", "train.compile", "true or false", "write true"),
    Case("wrong type", "octal", PARTS + "  seed: 010\n", "5:9", "train.seed", "whole number", "leading zeros: 10"),
    Case("wrong type", "null section", GOOD + "train:\n", "3:7", "train", "nothing", "remove the line"),
    Case("wrong type", "text for a part", "model: cnn\ndata: {use: digits}\n", "1:8", "model", "{use: NAME", "{use: cnn}"),
    Case("wrong type", "item of a list", "model: {use: cnn, channels: [16, x]}\n" + GOOD[18:], "1:34", "model.channels.1", "whole number", "remove"),
    Case("wrong type", "number for a list", "model: {use: cnn, channels: 16}\n" + GOOD[18:], "1:29", "model.channels", "list", "[16]"),
    Case("wrong type", "number for text", GOOD + "track: {experiment: 3}\n", "3:21", "track.experiment", "text", '"3"'),
    # 7. numbers out of range
    Case("range", "zero batch", PARTS + "  batch_size: 0\n", "5:15", "train.batch_size", "at least 1", "1 or more"),
    Case("range", "negative seed", PARTS + "  seed: -1\n", "5:9", "train.seed", "at least 0", "0 or more"),
    Case("range", "keep one", GOOD + "checkpoint: {keep: 1}\n", "3:20", "checkpoint.keep", "at least 2", "2 or more"),
    Case("range", "no time", GOOD + "cluster: {wait_s: 0}\n", "3:19", "cluster.wait_s", "above 0", "above 0"),
    Case("range", "infinite", GOOD + "optim: {lr: .inf}\n", "3:13", "optim.lr", "finite", "finite"),
    Case("range", "too large", GOOD + "optim: {lr: 1e999}\n", "3:13", "optim.lr", "too large", "finite"),
    Case("range", "a model's own check", "model: {use: cnn, kernel_size: 4}\n" + GOOD[18:], "1:32", "model.kernel_size", "odd", "orchestrator ls models"),
    # 8. what must be there and is not
    Case("missing", "model", "data: {use: digits}\n", "1:1", "model", "missing", "{use: "),
    Case("missing", "use", "model: {hidden: 1}\ndata: {use: digits}\n", "1:1", "model.use", "missing", "cnn"),
    Case("missing", "misspelt use", "model: {uze: cnn}\ndata: {use: digits}\n", "1:1", "model.use", "missing", "`uze`"),
    Case("missing", "length", GOOD + "train: {seed: 1}\n", "3:1", "train", "neither", "epochs: 5"),
    Case("missing", "key of a part", "model: {use: mlp, inputs: 4, outputs: 2}\ndata: {use: table, target: y}\n", "2:1", "data.path", "missing", "path"),
    # 9. names of parts that do not exist
    Case("unknown name", "model", "model: {use: cnnn}\ndata: {use: digits}\n", "1:14", "model.use", "cnnn", "`cnn`"),
    Case("unknown name", "schedule", GOOD + "optim: {schedule: {use: cosin}}\n", "3:25", "optim.schedule.use", "cosin", "`cosine`"),
    Case("unknown name", "export", GOOD + "export: [{use: program}, {use: onyx}]\n", "3:32", "export.1.use", "onyx", "`onnx`"),
    Case("unknown name", "module", "model: {use: no_such.module:Net}\ndata: {use: digits}\n", "1:14", "model.use", "cannot be found", "folder"),
    Case("unknown name", "class", "model: {use: own_nets:Nett}\n" + GOOD[18:], "1:14", "model.use", "no 'Nett'", "own_nets:Net"),
    Case("unknown name", "choice", PARTS + "  precision: fp16\n", "5:14", "train.precision", "fp32 or bf16", "write bf16"),
    # 10. keys that contradict each other
    Case("contradiction", "steps and epochs", PARTS + "  steps: 5\n", "4:3", "train.epochs", "(train.steps: job.yaml:5)", "remove one"),
    Case("contradiction", "nccl without GPUs", GOOD + "cluster: {backend: nccl, gpus_per_worker: 0}\n", "3:11", "cluster.backend", "GPUs", "gloo"),
    Case("contradiction", "export twice", GOOD + "export: [{use: program}, {use: program}]\n", "3:26", "export.1", "twice", "remove"),
    # 11. overrides
    Case("override", "no value", PARTS, "#1:1", "", "not an override", "train.steps=50", ("train.epochs",)),
    Case("override", "unknown key", PARTS, "#2:1", "train.sed", "unknown", "`seed`", ("train.seed=1", "train.sed=2")),
    Case("override", "below text", PARTS, "#1:1", "model.use.x", "no keys", "model.use=", ("model.use.x=1",)),
    Case("override", "no such item", PARTS, "#1:1", "optim.groups.0.lr", "no item '0'", "[...]", ("optim.groups.0.lr=1",), (("!", "optim: {groups: []}\n"),)),
    Case("override", "bad value", PARTS, "#1:16", "model.channels", "not closed", "]", ("model.channels=[1, 2",)),
    Case("override", "out of range", PARTS, "#1:18", "train.batch_size", "at least 1", "1 or more", ("train.batch_size=0",)),
    Case("override", "both lengths", PARTS, "#2:1", "train.epochs", "(train.steps: override #1)", "remove one", ("train.steps=5", "train.epochs=2")),
    # 12. extends and names
    Case("extends", "no such file", "extends: bsae.yaml\n" + GOOD, "1:10", "extends", "no such file", "base.yaml", (), (("base.yaml", GOOD),)),
    Case("extends", "a cycle", "extends: other.yaml\n" + GOOD, "other.yaml:1:10", "extends", "extend each other", "remove", (), (("other.yaml", "extends: job.yaml\n"),)),
    Case("extends", "not a path", "extends: {file: a}\n" + GOOD, "1:10", "extends", "path", "base.yaml"),
    Case("extends", "a mistake below", "extends: base.yaml\nname: x\n", "base.yaml:3:9", "train.epchs", "unknown", "`epochs`", (), (("base.yaml", GOOD + "train: {epchs: 1}\n"),)),
    Case("names", "blank and capitals", GOOD + "name: My Job\n", "3:7", "name", "lower-case", "my-job"),
    Case("names", "a path", GOOD + "name: ../../etc\n", "3:7", "name", "lower-case", "etc"),
    Case("names", "version", "version: 2\n" + GOOD, "1:10", "version", "takes 1", "write 1"),
)  # fmt: skip
