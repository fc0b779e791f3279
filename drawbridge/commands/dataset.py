"""`drawbridge dataset`: a labelled data set."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from drawbridge.client import DEFAULT_TIMEOUT, AsyncClient, ServiceError
from drawbridge.commands import sampling
from drawbridge.commands.dataset_flags import IMAGES_PER_LABEL, Flags
from drawbridge.commands.parsing import EXIT_INTERRUPTED, UsageError, requires_extra
from drawbridge.dataset import DatasetError, card, counts, writing
from drawbridge.dataset.drawing import Drawing
from drawbridge.dataset.formats import MAX_IDX_CLASSES
from drawbridge.dataset.parts import ImpossibleClass, Parts
from drawbridge.dataset.services import Service, note_other_devices, with_model
from training.interrupts import interrupt_exits

if TYPE_CHECKING:
    from drawbridge.dataset.filters import Filter

SHARED_TIMEOUT = 120.0
"""Seconds without a byte after which one of several services counts as lost."""


def main(arguments: Sequence[str]) -> int:
    """Draw the part of a data set that is missing, and write all of it."""
    try:
        job = Job(Flags(arguments))
        try:
            asyncio.run(job.draw())
            job.write()
        except KeyboardInterrupt:
            return job.interrupted()
        finally:
            job.close()
    except DatasetError as error:
        raise UsageError(str(error)) from None
    return 0


class Job:
    """One data set: its flags, the model as the service describes it, and the parts."""

    model: dict[str, Any]
    manifest: dict[str, Any]
    classes: list[str]
    counts: dict[str, list[int]]
    """The images of each class by split."""
    filters: "list[Filter]"
    parts: Parts | None = None

    def __init__(self, flags: Flags) -> None:
        self.flags = flags

    async def draw(self) -> None:
        """Draw all parts. Raises DatasetError or UsageError, and what a service failed with."""
        flags = self.flags
        async with AsyncExitStack() as stack:
            services = []
            urls = list(dict.fromkeys(flags.given.url or [None]))
            for url in urls:
                timeout = DEFAULT_TIMEOUT if len(urls) == 1 else SHARED_TIMEOUT
                connection = sampling.connect(url, flags.model, "dataset", timeout)
                services.append(Service(url or "this process", await stack.enter_async_context(connection)))
            services, self.model = await with_model(services, flags.model)
            self.manifest = (await services[0].client.model(flags.model))["manifest"]
            self.classes = self.model["classes"]
            self._check_model()
            self.counts = await self._count(services[0].client)
            self.filters = self._filters()
            # With its version, which a service goes on serving after a reload.
            key = f"{flags.model}@{self.model['digest'][:12]}"
            await note_other_devices(services, key, self.classes[0])
            request = {"model": key, "seed": flags.seed, "priority": "bulk", **flags.sampling}
            try:
                self.parts = self._parts()
                await Drawing(self.parts, request, self.classes, self._verdicts()).run(services)
            except ImpossibleClass as error:
                raise DatasetError(
                    f"class {self.classes[error.label]!r}: of {error.drawn} images drawn, {error.kept} were kept; "
                    "loosen --keep, or raise --max-tries"
                ) from None

    def write(self) -> None:
        """Write the data set and its card, and print what it has."""
        flags, parts = self.flags, self.parts
        assert parts is not None
        labels = {
            split: counts.shuffled_labels(of_split, flags.seed, number)
            for number, (split, of_split) in enumerate(self.counts.items())
        }
        drawn, dropped = zip(
            *(parts.dropped(label, len(self.filters)) for label in range(len(self.classes))), strict=True
        )
        filters = [
            {**one.description, "dropped": [of_class[number] for of_class in dropped]}
            for number, one in enumerate(self.filters)
        ]
        data_card = card.make(
            model=self.model,
            manifest=self.manifest,
            seed=flags.seed,
            options=flags.sampling,
            command=flags.command(),
            format=flags.format_name,
            shards=flags.shard_size and -(-sum(self.counts["train"]) // flags.shard_size),
            counts=self.counts,
            filters=filters,
            drawn=drawn,
        )
        sides = (self.model["height"], self.model["width"])
        shape = sides if self.model["channels"] == 1 else (*sides, 3)
        writing.write(flags.output, flags.format, flags.shard_size, parts, labels, self.classes, shape, data_card)
        for one in filters:
            print(_report(one, self.classes, sum(drawn)), file=sys.stderr)
        print(f"{flags.output}: {parts.count} images of {flags.model}, seed {flags.seed}", file=sys.stderr)

    def close(self) -> None:
        """Let another command continue with the parts that are left."""
        if self.parts is not None:
            self.parts.close()

    def interrupted(self) -> int:
        """Print what is saved. Returns the exit status. Raises KeyboardInterrupt if nothing was drawn yet."""
        if self.parts is None:
            raise KeyboardInterrupt
        print(
            f"interrupted: {self.parts.kept} images are saved in {self.parts.folder}; the same command continues from "
            "there",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED

    def _check_model(self) -> None:
        """Raise UsageError if the model has no labels, or images that the format does not hold."""
        name, classes = self.flags.model, self.classes
        if not classes:
            raise UsageError(f"{name} takes no label; a data set needs a conditional model")
        if self.flags.format_name == "idx" and (self.model["channels"] != 1 or len(classes) > MAX_IDX_CLASSES):
            raise UsageError(
                f"--format idx: holds grey images of at most {MAX_IDX_CLASSES} classes; {name} has "
                f"{'grey' if self.model['channels'] == 1 else 'colour'} images of {len(classes)}; use another format"
            )

    async def _count(self, client: AsyncClient) -> dict[str, list[int]]:
        """The images of each class by split, as the flags say."""
        args, classes = self.flags.given, self.classes
        number = partial(_label_number, client, self.flags.model, classes)
        train = [0] * len(classes)
        if args.like:
            with requires_extra("training", "dataset --like"), interrupt_exits():
                import training.data  # noqa: F401
            for name, count in counts.of_data(args.like, args.data_root).items():
                if count:
                    train[await number(name, "--like")] += count
            if args.total is not None:
                train = counts.spread(args.total, train)
        elif args.total is not None:
            train = counts.spread(args.total, [1] * len(classes))
        elif args.per_label is not None or not args.count:
            train = [args.per_label or IMAGES_PER_LABEL] * len(classes)
        for text in args.count:
            name, _, count = text.rpartition("=")
            if not name or not (count.isascii() and count.isdecimal()):
                raise UsageError(f"--count {text}: use LABEL=N, as 3=6000")
            train[await number(name, "--count")] = int(count)
        test = counts.of_test_split(train, self.flags.test_share)
        counts.check([*train, *test])
        return {"train": train, "test": test} if any(test) else {"train": train}

    def _filters(self) -> "list[Filter]":
        """The filters of the command line. Raises DatasetError if their judge or data is missing."""
        flags = self.flags
        if not (flags.conditions or flags.given.no_copies):
            return []
        with (
            requires_extra("training", f"dataset {'--keep' if flags.conditions else '--no-copies'}"),
            interrupt_exits(),
        ):
            import torch

            from drawbridge.dataset import filters
        if flags.given.url:  # as a service does by default: the order of sums must not depend on the number of cores
            torch.set_num_threads(1)
        manifest = filters.to_manifest(self.manifest)
        found: list[Filter] = []
        if flags.conditions:
            found.append(filters.by_judge(flags.model, manifest, flags.conditions))
        if flags.given.no_copies:
            found.append(filters.no_copies(flags.model, manifest, flags.given.data, flags.given.data_root))
        return found

    def _verdicts(self) -> Any:
        """The function that applies the filters; None if there are none."""
        if not self.filters:
            return None
        from drawbridge.dataset.filters import verdicts

        return partial(verdicts, self.filters)

    def _parts(self) -> Parts:
        """The parts, begun or continued. Raises ImpossibleClass, and DatasetError if they are of another data set."""
        flags, filters = self.flags, [one.description for one in self.filters]
        wanted = [sum(of_class) for of_class in zip(*self.counts.values(), strict=True)]
        folder = flags.output.with_name(f"{flags.output.name}.parts")
        parts = Parts(folder, wanted, filtered=bool(filters), max_tries=flags.max_tries)
        settings = {"model": flags.model, "digest": self.model["digest"], "seed": flags.seed, **flags.sampling}
        parts.begin({**settings, "counts": self.counts, "filters": filters})
        if flags.output.exists():  # another command wrote it since the flags were read
            parts.remove()
            raise DatasetError(f"{flags.output} exists already; remove it, or name another output")
        return parts


async def _label_number(client: AsyncClient, model: str, classes: Sequence[str], label: str, flag: str) -> int:
    """The class that `label` means to the service: its name, its name in another case, or its number."""
    if label in classes:
        return classes.index(label)
    try:
        number = int((await client.generate(model, label=label, n=1, seed=0)).labels[0])
    except ServiceError as error:
        raise UsageError(f"{flag}: {error}") from None
    if number < 0:
        raise UsageError(f"{flag}: {label!r} is no class of {model}; its classes are: {', '.join(classes)}")
    return number


def _report(described: dict[str, Any], classes: Sequence[str], drawn: int) -> str:
    """How many of the drawn images a filter dropped, by class, most first."""
    dropped = sorted(zip(described["dropped"], classes, strict=True), key=lambda pair: -pair[0])
    listed = ", ".join(f"{name} {count}" for count, name in dropped if count)
    total = sum(described["dropped"])
    return f"{described['filter']}: {total} of {drawn} drawn images dropped{f' ({listed})' if listed else ''}"
