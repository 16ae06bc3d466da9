#!/usr/bin/env node
// An orchestrator in Node, standard library only: starts an execution, attaches a stopped child of
// its own to an agent, tells it where its secrets are, lets it run, and ends the execution.
//
// usage: orchestrator.js SOCKET CHAIN AGENT ENV COMMAND...
const fs = require("node:fs");
const http = require("node:http");
const { spawn } = require("node:child_process");

const [socketPath, chain, agent, environment, ...command] = process.argv.slice(2);

function ask(path, body) {
  return new Promise((resolve, reject) => {
    const headers = { "content-type": "application/json" };
    const request = http.request({ socketPath, path, method: "POST", headers }, (answer) => {
      let text = "";
      answer.setEncoding("utf8");
      answer.on("data", (part) => (text += part));
      answer.on("end", () => {
        const told = JSON.parse(text);
        if (answer.statusCode < 400) return resolve(told);
        reject(new Error(`${told.detail}\nhint: ${told.hint ?? "-"}`));
      });
    });
    request.on("error", reject);
    request.end(JSON.stringify(body));
  });
}

// Stopped until it is registered: nothing of it runs as nobody. What it learns on stdin is its
// directory, which is known only then.
const stopped = 'kill -STOP $$; read -r CREDENTIALS_DIRECTORY; export CREDENTIALS_DIRECTORY; exec "$@"';

async function isStopped(pid) {
  for (;;) {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, "utf8");
    if (stat.slice(stat.lastIndexOf(")") + 2)[0] === "T") return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

async function main() {
  const execution = await ask("/v1/executions", { chain, environment });
  try {
    const child = spawn("sh", ["-c", stopped, "sh", ...command],
      { stdio: ["pipe", "inherit", "inherit"] });
    const ended = new Promise((resolve) => child.on("exit", (code) => resolve(code ?? 1)));
    await isStopped(child.pid);
    const launched = await ask("/v1/agents",
      { execution: execution.id, agent, how: "attach", pid: child.pid });
    child.stdin.end(`${launched.principal_dir}\n`);
    child.kill("SIGCONT");
    process.exitCode = await ended;
  } finally {
    const { state } = await ask("/v1/executions/end", { id: execution.id });
    console.log("execution", state);
  }
}

main().catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
