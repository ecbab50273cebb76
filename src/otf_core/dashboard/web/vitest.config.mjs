import { defineConfig } from "vitest/config";

export default defineConfig({
  esbuild: { jsx: "automatic", jsxImportSource: "preact" },
  test: {
    include: ["tests/**/*.test.{ts,tsx}"],
    environment: "node", // a test that needs a document says so in its first line
    isolate: false,
    pool: "threads",
    maxWorkers: 1,
    env: { TZ: "UTC" },
  },
});
