"""``segpt recipes``."""

from typing import Any

import click

from . import _options, _report


@click.group("recipes", cls=_options.CommandGroup, invoke_without_command=True)
@_options.as_json
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the recipes that come with segpt, or show one with all of its values."""
    if context.invoked_subcommand is not None:
        return
    from segpt.config.layout import parameters
    from segpt.config.recipe import Bpe, names, read_recipe

    rows: list[dict[str, Any]] = []
    for name in names():
        recipe = read_recipe(name)
        rows.append(
            {
                "name": name,
                "parameters": parameters(recipe.model),
                "vocab": recipe.tokenizer.vocab if isinstance(recipe.tokenizer, Bpe) else None,
                "context": recipe.model.context,
                "budget": recipe.pack.budget,
                "about": recipe.about,
            }
        )
    if as_json:
        _report.emit({"recipes": rows}, True, [])
        return
    shown = [[r["name"], f"{r['parameters']:,}", f"{r['budget']:,}", r["about"]] for r in rows]
    columns = ["recipe", "parameters", "budget, bytes", "about"]
    _report.table("Recipes that come with segpt", columns, shown)
    _report.emit({}, False, ["All values of one: segpt recipes show NAME"])


@command.command("show")
@click.argument("recipe", metavar="RECIPE")
@_options.stage
@_options.settings
@_options.as_json
def show_command(
    recipe: str,
    stage: str | None,
    config_key: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print RECIPE, a shipped one or a YAML file, with every value and where it comes from.

    `default` is what segpt takes where nothing is written, `recipe` stands in the recipe, and
    `--set` was given on the command line. What is printed is a recipe again: put it into a file
    that ends in .yaml, change it and train with --recipe FILE.
    """
    from segpt.config.base import fingerprint
    from segpt.config.layout import parameters
    from segpt.config.resolved import resolve, yaml_lines
    from segpt.config.stages import Choice

    resolved = resolve(recipe, settings, Choice(stage, config_key))
    result = {
        "recipe": resolved.table,
        "origins": resolved.origins,
        "parameters": parameters(resolved.recipe.model),
        "fingerprint": fingerprint(resolved.recipe),
    }
    head = f"# {result['parameters']:,} parameters; behind each value, where it comes from"
    _report.emit(result, as_json, [head, *yaml_lines(resolved)])
