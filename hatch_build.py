"""Builds the dashboard's page into the wheel; without Node the wheel is made without it."""

from __future__ import annotations

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface):
    PLUGIN_NAME = "custom"
