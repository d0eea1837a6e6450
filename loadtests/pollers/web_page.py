"""What the test adds to Locust's web page: two tabs, a download, tables in the report."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from flask import Response, jsonify, request

from loadtests.pollers import results
from loadtests.pollers.options import InvalidOption, PollOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flask import Flask
    from locust.web import WebUI

    from loadtests.pollers.record import Record

_CSV = "/polls/latencies.csv"
_PAGE = "/polls/latencies"


def extend(
    web_ui: WebUI, record: Callable[[], Record], accept: Callable[[PollOptions], None]
) -> None:
    """Add the results of the test to Locust's web page, and check the options given there.

    Args:
        web_ui: the page.
        record: returns the results so far.
        accept: called with the options of the page before a test starts.
    """
    app = web_ui.app
    if app is None:
        raise RuntimeError("Locust has no web page")
    web_ui.template_args |= {
        "extendedTabs": [{"title": title, "key": key} for key, title in results.TITLES.items()],
        "extendedTables": [
            {
                "key": table,
                "structure": [{"key": key, "title": title} for key, title in columns.items()],
            }
            for table, columns in results.COLUMNS.items()
        ],
        "extendedCsvFiles": [
            {"href": f".{_CSV}", "title": "Download poll latencies CSV"},
            {"href": f".{_PAGE}", "title": "Show the distribution of poll latencies"},
        ],
    }
    _check_options(app, web_ui, accept)
    _add_results(app, web_ui, record)


def _check_options(app: Flask, web_ui: WebUI, accept: Callable[[PollOptions], None]) -> None:
    @app.before_request
    def refuse_invalid() -> Response | None:
        if request.endpoint != "locust.swarm":
            return None
        environment = web_ui.environment
        try:
            accept(PollOptions.of(_as_locust_reads(request.form, environment.parsed_options)))
        except InvalidOption as error:
            return jsonify({"success": False, "message": str(error), "host": environment.host})
        return None


def _add_results(app: Flask, web_ui: WebUI, record: Callable[[], Record]) -> None:
    base = web_ui.environment.parsed_options
    prefix = "" if base is None else base.web_base_path or ""

    def table() -> Response:
        headers = {"Content-Disposition": "attachment;filename=latencies.csv"}
        return Response(results.as_csv(record()), headers=headers, mimetype="text/csv")

    def page() -> Response:
        return Response(results.as_page(record()), mimetype="text/html")

    for path, name, view in ((_CSV, "poll_table", table), (_PAGE, "poll_page", page)):
        guarded = web_ui.auth_required_if_enabled(view)  # type: ignore[no-untyped-call]
        app.add_url_rule(f"{prefix}{path}", name, guarded)

    @app.after_request
    def add_results(response: Response) -> Response:
        if request.endpoint == "locust.request_stats" and response.is_json:
            shown = [
                {"key": table, "data": results.lines(record(), table)} for table in results.TITLES
            ]
            # Locust keeps this response for two seconds, so it may have been extended already.
            return jsonify({**response.get_json(), "extended_stats": shown})
        if request.endpoint == "locust.stats_report" and response.status_code == 200:
            response.set_data(results.insert(response.get_data(as_text=True), record()))
        return response


def _as_locust_reads(form: Mapping[str, str], options: Namespace | None) -> Namespace:
    """Return the options as they will be once Locust has taken those of the form."""
    values = {} if options is None else dict(vars(options))
    for name, text in form.items():
        before = values.get(name)
        if isinstance(before, int | float) and not isinstance(before, bool):
            try:
                values[name] = type(before)(text)
            except ValueError:
                option = f"--{name.replace('_', '-')}"
                kind = "a whole number" if isinstance(before, int) else "a number"
                raise InvalidOption(f"{option} must be {kind}, not {text!r}") from None
        elif isinstance(before, str):
            values[name] = text
    return Namespace(**values)
