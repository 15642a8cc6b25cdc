"""A profile: which items of an export become which rows. The only place for business rules."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from migration_pipeline.errors import UsageError
from migration_pipeline.profile.aggregate import (
    Aggregate,
    Constraint,
    FinishingStep,
    Index,
    Options,
    Sequence,
    make_aggregate,
)
from migration_pipeline.profile.item import Item
from migration_pipeline.profile.row import Row, Table, table_of

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Prefix:
    """A condition: the attribute is a string that begins with `text`."""

    text: str


def prefix(text: str) -> Prefix:
    """Match string attributes that begin with `text`: ``SK=prefix("ORDER#")``. ``prefix("")`` matches every item."""
    return Prefix(text)


NulPolicy = Literal["quarantine", "strip", "escape"]
"""What happens to U+0000, which DynamoDB's strings may hold and PostgreSQL's text and jsonb may not."""

Condition = Union[str, Prefix, bool, int, Decimal]  # noqa: UP007  # an alias that Python 3.10 can evaluate
"""What an attribute must be: a text (S), a number (N) or a boolean (BOOL)."""


def wire_type(condition: Condition) -> str:
    """The DynamoDB type of the attributes for which a condition can hold."""
    if isinstance(condition, bool):  # which Python counts among the numbers
        return "BOOL"
    return "N" if isinstance(condition, (int, Decimal)) else "S"


class _UndefinedError(UsageError):
    """A route's annotations name a class that is not there."""


@dataclass(frozen=True)
class Rule:
    """One line of a profile's route table: conditions on attributes that must all hold.

    A rule with a function is a route; one without is an ignore, and `reason` is why.
    """

    conditions: tuple[tuple[str, Condition], ...]
    reason: str
    function: Callable[..., Any] | None = None
    item_class: type[Item] | None = None
    row_classes: tuple[type[Row], ...] = ()
    """What the function may return rows of."""
    options_class: type[Options] | None = None
    """Of the function's second argument, if it has one."""


@dataclass(eq=False)
class Profile:
    """A migration's rules, in the order they are declared: the first whose conditions hold takes the item.

    >>> shop = Profile("shop")
    >>> shop.ignore(SK=prefix("SESSION#"), because="sessions expire within a day")

    Items that no rule takes are counted as *unrouted*, by the pattern of their keys, and then the migration is not
    complete. To skip all other items, end with the rule ``shop.ignore(because="…")``.
    """

    name: str
    version: str = "1"
    """Change it when the rules change: receipts record it."""
    nul: NulPolicy = "quarantine"
    """What happens to U+0000 in text and jsonb: the item goes to the quarantine, or the character is left out
    ("strip") or written as the six characters \\u0000 ("escape"). Values changed so are counted."""
    may_quarantine: int = 0
    """How many items may stay in the quarantine of a complete migration, such as items broken at the source; they
    are still reported."""
    rules: list[Rule] = field(default_factory=list)
    row_classes: list[type[Row]] = field(default_factory=list)
    aggregates: list[Aggregate] = field(default_factory=list)
    finishing: list[FinishingStep] = field(default_factory=list)
    _unread: bool = False
    """Whether annotations of routes name classes that were not there yet."""

    def __post_init__(self) -> None:
        if self.nul not in get_args(NulPolicy):
            raise UsageError(
                f"profile {self.name}: nul={self.nul!r}; use one of {', '.join(get_args(NulPolicy))}"
            )
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UsageError(
                f"profile name {self.name!r}: use lower-case letters, digits and _ (it names the Dagster assets)"
            )

    def route(self, /, **conditions: Condition) -> Callable[[Function], Function]:
        """Route the items for which all `conditions` hold to the function that this decorates.

        The function is pure: it takes one item, typed by its annotation, and returns a row, a list of
        rows, or None (the item is then counted as skipped, under the function's name). Its annotations
        are read: ``def order(item: OrderItem) -> Order``, ``-> Order | None``, ``-> list[Order | OrderLine]``.
        A condition is a text or `prefix` (S), a number (N: ``kind=1``) or a boolean (BOOL: ``active=True``).
        Without conditions the route takes every item that reaches it. A second argument, annotated with an
        `Options` class, gets the profile's options.
        """

        def add(function: Function) -> Function:
            self._expect_items_left()
            self.rules.append(Rule(_checked(conditions), function.__name__, function))
            self._unread = True
            try:
                self.read_annotations()
            except _UndefinedError:
                pass  # a class may stand below the route that names it; the first use of the profile looks again
            except UsageError:
                self.rules.pop()
                raise
            return function

        return add

    def read_annotations(self) -> None:
        """Read the classes that routes name, as far as that is not done; a `Profile` does it itself at its first use.

        Raises `UsageError` for annotations that are not those of a route.
        """
        if not self._unread:
            return
        for place, rule in enumerate(self.rules):
            if rule.function and not rule.item_class:
                item_class, options_class, row_classes = _signature(rule.function)
                if options_class and {r.options_class for r in self.rules} - {None, options_class}:
                    raise UsageError(f"profile {self.name}: its routes take two Options classes; use one")
                self.rules[place] = replace(
                    rule,
                    item_class=item_class,
                    row_classes=tuple(row_classes),
                    options_class=options_class,
                )
        named = [row_class for rule in self.rules for row_class in rule.row_classes]
        self.row_classes[:] = dict.fromkeys([*named, *self.row_classes])
        self._unread = False

    def ignore(self, *, because: str, **conditions: Condition) -> None:
        """Skip the items for which all `conditions` hold, and count them under the reason `because`.

        Without conditions it takes all remaining items, so it must be the last rule.
        """
        self._expect_items_left()
        self.rules.append(Rule(_checked(conditions), because))

    def _expect_items_left(self) -> None:
        """Refuse a rule that no item can reach, because it would only look as if it worked."""
        if self.rules and not self.rules[-1].conditions and self.rules[-1].function is None:
            raise UsageError(
                f"profile {self.name}: no item reaches the rules after ignore(because={self.rules[-1].reason!r}), which has "
                "no condition and takes all remaining items; make it the last rule"
            )

    def aggregate(
        self,
        row_class: type[Row],
        *,
        of: type[Row] | tuple[type[Row], ...],
        by: str | tuple[str, ...],
        sql: str,
    ) -> None:
        """Make the rows of a table from the rows of landing tables, once the files of the plan are landed.

        `sql` is a file in the folder of the module that has the routes, or else the Row. It is one SELECT over
        the landing tables `of`, with a column for each of the Row's columns, by name. Each distinct value of
        `by`, columns of the landing tables that stand for the table's key, must become one row. Group by these
        very columns: then the SELECT of a large table is run range by range.
        """
        landed = of if isinstance(of, tuple) else (of,)
        functions = [rule.function for rule in self.rules if rule.function]
        path = _beside((*functions, row_class, *landed), sql)
        self.aggregates.append(make_aggregate(row_class, landed, (by,) if isinstance(by, str) else by, path))

    def sequence(self, name: str, *, past: type[Row], column: str) -> None:
        """Set a sequence past the greatest value of a column, when all is loaded; never back."""
        self.finishing.append(Sequence(name, past, column))

    def index(self, row_class: type[Row], *columns: str, name: str, unique: bool = False) -> None:
        """Make an index when all is loaded, which is cheaper than to keep one during a load."""
        self.finishing.append(Index(name, row_class, columns, unique))

    def constraint(self, row_class: type[Row], definition: str, *, name: str) -> None:
        """Add a constraint when all is loaded: ``constraint(Line, "FOREIGN KEY (o) REFERENCES orders", name="…")``."""
        self.finishing.append(Constraint(name, row_class, definition))

    @property
    def tables(self) -> dict[type[Row], Table]:
        """The tables that files are loaded into, in the order its routes name them; landing tables among them."""
        self.read_annotations()
        return {row_class: table_of(row_class) for row_class in self.row_classes}

    @property
    def all_tables(self) -> list[Table]:
        """The tables that have to be there: those that files are loaded into, and those that aggregates make."""
        return [*self.tables.values(), *(aggregate.table for aggregate in self.aggregates)]

    @property
    def options_class(self) -> type[Options] | None:
        """The class of the profile's options; None when no route takes any."""
        self.read_annotations()
        return next((rule.options_class for rule in self.rules if rule.options_class), None)

    def options(self, given: Mapping[str, Any]) -> Options | None:
        """Make the profile's options of some values, which may be texts; None when it has none. Raises `UsageError`."""
        if self.options_class is None:
            if given:
                raise UsageError(f"the profile {self.name} has no options, but got {', '.join(given)}")
            return None
        try:
            options: Options = msgspec.convert(given, self.options_class, strict=False)
        except msgspec.ValidationError as error:
            raise UsageError(f"options of {self.name}: {error}") from None
        return options

    def wire_types(self, attribute: str) -> set[str]:
        """The DynamoDB types that rules want an attribute to have."""
        return {wire_type(c) for rule in self.rules for name, c in rule.conditions if name == attribute}

    @property
    def routing_attributes(self) -> list[str]:
        """The attributes that rules look at; of skipped items, nothing else is decoded."""
        self.read_annotations()
        return list(dict.fromkeys(name for rule in self.rules for name, _ in rule.conditions))


def _beside(definitions: Iterable[Any], name: str) -> Path:
    """Find a file in the folder of a module that has one of the `definitions`; if it is missing, return the first path tried."""
    modules = [sys.modules.get(each.__module__) for each in definitions]
    places = [Path(file).parent / name for module in modules if (file := getattr(module, "__file__", None))]
    return next((place for place in places if place.is_file()), places[0] if places else Path(name))


def _checked(conditions: dict[str, Condition]) -> tuple[tuple[str, Condition], ...]:
    for name, condition in conditions.items():
        if isinstance(condition, float):
            raise UsageError(
                f"condition {name}={condition!r}: a float is not exact; write a whole number or Decimal({str(condition)!r})"
            )
        if isinstance(condition, Decimal) and not condition.is_finite():
            raise UsageError(f"condition {name}={condition!r}: DynamoDB has no such number; use a finite one")
        text = condition.text if isinstance(condition, Prefix) else condition
        if not isinstance(text, (str, int, Decimal)) or (text == "" and not isinstance(condition, Prefix)):
            raise UsageError(
                f"condition {name}={condition!r}: use a non-empty string, prefix('…'), a number or a boolean"
            )
    return tuple(conditions.items())


def _signature(
    function: Callable[..., Any],
) -> tuple[type[Item], type[Options] | None, list[type[Row]]]:
    """Read the classes of item, options and rows off a route's annotations."""
    where = f"route {function.__name__}"
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise _UndefinedError(f"{where}: its annotations name {error.name!r}, which is not defined") from None
    parameters = list(inspect.signature(function).parameters)
    item_class = hints.get(parameters[0]) if len(parameters) in (1, 2) else None
    if not (isinstance(item_class, type) and issubclass(item_class, Item)):
        raise UsageError(f"{where}: it must take one argument, annotated with an Item class")
    options_class = hints.get(parameters[1]) if len(parameters) == 2 else None
    if len(parameters) == 2 and not (isinstance(options_class, type) and issubclass(options_class, Options)):
        raise UsageError(f"{where}: its second argument must be annotated with an Options class")
    row_classes = list(_row_classes(hints.get("return")))
    if not row_classes:
        raise UsageError(f"{where}: its return type must be annotated with a Row class, e.g. -> Customer")
    return item_class, options_class, row_classes


def _row_classes(annotation: Any) -> Iterable[type[Row]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, Row):
            yield annotation
        return
    if get_origin(annotation) is not None:
        for argument in get_args(annotation):
            yield from _row_classes(argument)


class _CurrentFolder:
    """Finds modules that are only in the current folder, such as those that a profile's routes import when called."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [""]) if path is None else None


def import_here(name: str) -> types.ModuleType:
    """Import a module, also from the current folder. `sys.path` is afterwards as it was.

    What the module itself imports later, in a function, is looked for there, too, after everywhere else.
    """
    if _CurrentFolder not in sys.meta_path:
        sys.meta_path.append(_CurrentFolder)
    if (here := os.getcwd()) in sys.path:
        return importlib.import_module(name)
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        if here in sys.path:
            sys.path.remove(here)


def load_profile(reference: str) -> Profile:
    """Import a profile: a shipped one by name (``shop``), any other by path (``my_package.my_module:profile``).

    A profile in the current folder needs no installation; see `import_here`. Raises `UsageError` that says what
    could not be imported.
    """
    path = reference if ":" in reference or "." in reference else f"migration_pipeline.profiles.{reference}"
    module_name, _, variable = path.partition(":")
    try:
        module = import_here(module_name)
    except UsageError as error:
        raise UsageError(f"profile {reference}: {error}") from error
    except Exception as error:
        raise UsageError(_import_failure(reference, module_name, error)) from error
    profile = getattr(module, variable or "profile", None)
    if not isinstance(profile, Profile):
        raise UsageError(
            f"profile {reference}: {module_name} has no Profile called {variable or 'profile'!r}"
        )
    if not profile.rules:
        raise UsageError(f"profile {reference}: it has no route; add one with @{profile.name}.route(…)")
    try:
        profile.read_annotations()
    except UsageError as error:
        raise UsageError(f"profile {reference}: {error}") from error
    _check_tables(reference, profile)
    return profile


def _check_tables(reference: str, profile: Profile) -> None:
    """Check that only one Row class writes each table."""
    writers: dict[str, str] = {}
    for row_class in (*profile.row_classes, *(aggregate.row_class for aggregate in profile.aggregates)):
        name = table_of(row_class).spellings[-1]
        if name in writers:
            raise UsageError(
                f"profile {reference}: two Row classes write the table {name}, {writers[name]} and {row_class.__name__}; "
                "use one of them, or name another table"
            )
        writers[name] = row_class.__name__


def _import_failure(reference: str, module_name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and module_name.startswith(error.name):
        return (
            f"profile {reference}: no module {error.name!r}; give a shipped profile (shop, pictures) or a path such as "
            "my_package.my_module:profile, importable from the current directory"
        )
    frame = _last_frame(error)
    return f"profile {reference}: {module_name} does not import: {type(error).__name__}: {error}{frame}"


def _last_frame(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f" ({traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno})" if traceback else ""
