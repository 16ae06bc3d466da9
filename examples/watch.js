#!/usr/bin/env node
// Watches what happens, from Node, standard library only: one line of JSON an event.
//
// usage: watch.js SOCKET [AFTER_SEQ] [COUNT]
const http = require("node:http");

const [socketPath, after = "0", count = "Infinity"] = process.argv.slice(2);
let left = Number(count);
const request = http.get({ socketPath, path: `/v1/watch?after_seq=${after}` }, (answer) => {
  let rest = "";
  answer.setEncoding("utf8");
  answer.on("data", (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (left-- <= 0) return request.destroy();
      const event = JSON.parse(line);
      console.log(event.seq, event.event, event.agent ?? "-");
    }
    if (left <= 0) request.destroy();
  });
});
request.on("error", (error) => {
  if (error.code !== "ECONNRESET") {
    console.error(`error: ${error.message}\nhint: strongroom up`);
    process.exitCode = 1;
  }
});
