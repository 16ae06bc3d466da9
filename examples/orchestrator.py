#!/usr/bin/env python3
"""An orchestrator in Python, standard library only: starts an execution, attaches a stopped child
of its own to an agent, lets it run, and ends the execution.

usage: orchestrator.py SOCKET CHAIN AGENT ENV COMMAND...
"""
import http.client
import json
import os
import signal
import socket
import sys


class Vault(http.client.HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, path):
        super().__init__("strongroom")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)

    def ask(self, method, path, body=None):
        self.request(method, path, json.dumps(body) if body else None,
                     {"content-type": "application/json"})
        answer = json.load(self.getresponse())
        if "detail" in answer:
            sys.exit(f"error: {answer['detail']}\nhint: {answer.get('hint', '-')}")
        return answer


def main():
    path, chain, agent, environment, *command = sys.argv[1:]
    vault = Vault(path)
    execution = vault.ask("POST", "/v1/executions", {"chain": chain, "environment": environment})
    try:
        child = os.fork()
        if child == 0:
            # Stopped until it is registered: nothing of it runs as nobody.
            os.kill(os.getpid(), signal.SIGSTOP)
            os.execvp(command[0], command)
        os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT)
        launched = vault.ask("POST", "/v1/agents", {
            "execution": execution["id"], "agent": agent, "how": "attach", "pid": child})
        print("directory", launched["principal_dir"], flush=True)
        os.environ["CREDENTIALS_DIRECTORY"] = launched["principal_dir"]
        os.kill(child, signal.SIGCONT)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        ended = vault.ask("POST", "/v1/executions/end", {"id": execution["id"]})
    print("execution", ended["state"], flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
