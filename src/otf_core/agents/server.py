"""The tools as an MCP server over stdio (Model Context Protocol, the official SDK)."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any, Final

import anyio
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from otf_core.agents.tools import Tool, Tools

INSTRUCTIONS: Final = (
    "Training runs that are under way. A call that changes a run returns when the change has been "
    "applied and read back (applied: true), or with what refused it. Try changes with dry_run "
    "first. What loses work needs a person: pass on the line that the refusal names."
)


def serve(tools: Tools, names: dict[str, str]) -> None:
    """Until the client hangs up.

    Args:
        names: gets ``client``, what the client calls itself.
    """

    async def listed(_ctx: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_described(tool) for tool in tools.by_name.values()])

    async def called(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        info = getattr(ctx.session.client_params, "client_info", None)
        if info is not None:
            names["client"] = info.name
        # In a thread: a command waits for a safe point, and others may ask meanwhile.
        found, refused = await anyio.to_thread.run_sync(
            tools.call, params.name, params.arguments or {}
        )
        return types.CallToolResult(
            content=[types.TextContent(text=json.dumps(found, ensure_ascii=False))],
            structured_content=found,
            is_error=refused,
        )

    server: Server[Any] = Server(
        "otf",
        version=version("otf-lightning"),
        instructions=INSTRUCTIONS,
        on_list_tools=listed,
        on_call_tool=called,
    )

    async def run() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(run)


def _described(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        description=tool.help,
        input_schema=dict(tool.schema),
        annotations=types.ToolAnnotations(
            read_only_hint=not tool.changes,
            destructive_hint=tool.loses,
            open_world_hint=False,
        ),
    )
