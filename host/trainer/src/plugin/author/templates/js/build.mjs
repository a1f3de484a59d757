// Makes a component of dist/.plugin.js. Everything of WASI is left out: a plugin has no files, network, clock or console.
import { componentize } from "@bytecodealliance/componentize-js";
import { writeFile } from "node:fs/promises";

const [source, output] = process.argv.slice(2);
const { component } = await componentize({
  sourcePath: source,
  witPath: "wit",
  worldName: "plugin",
  disableFeatures: ["stdio", "random", "clocks", "http", "fetch-event"],
});
await writeFile(output, component);
