#!/usr/bin/env python3
"""A supervisor in Python, standard library only: its agent runs as another user and redeems a ticket
by itself, over the socket; the supervisor follows what is recorded, and ends the execution.

usage: supervisor.py SOCKET CHAIN AGENT ENV USER COMMAND...
"""
import json
import os
import pwd
import sys

from orchestrator import Vault


def redeem(path, ticket, user):
    """Becomes `user`, then the agent that the ticket is for; the daemon moves who asks."""
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    launched = Vault(path).ask("POST", "/v1/tickets/redeem", {"ticket": ticket, "how": "move-peer"})
    os.environ.update(launched["env"])


def follow(vault, execution):
    """Prints what is recorded of an execution, from its start to its end."""
    vault.request("GET", "/v1/watch?after_seq=0")
    for line in vault.getresponse():
        event = json.loads(line)
        if event.get("execution") == execution:
            print(event["event"], event.get("agent") or "-", flush=True)
            if event["event"] == "execution_ended":
                return


def main():
    path, chain, agent, environment, user, *command = sys.argv[1:]
    user = pwd.getpwnam(user)
    vault = Vault(path)
    execution = vault.ask("POST", "/v1/executions", {"chain": chain, "environment": environment})
    try:
        made = vault.ask("POST", "/v1/tickets", {
            "chain": chain, "agent": agent, "execution": execution["id"], "as_user": user.pw_name})
        child = os.fork()
        if child == 0:
            redeem(path, made["ticket"], user)
            os.execvp(command[0], command)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        vault.ask("POST", "/v1/executions/end", {"id": execution["id"]})
    follow(Vault(path), execution["id"])
    sys.exit(status)


if __name__ == "__main__":
    main()
