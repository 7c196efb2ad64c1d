# One machine without a GPU: a model for code, a person whose repositories ralph works on, tools for that person's agents,
# and a service of the person's own that the healer keeps running beside those of Lares.
{ pkgs, ... }:
{
  imports = [ ../hardware-configuration.nix ];

  networking.hostName = "workstation";
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "26.05";

  users.users.alice = {
    isNormalUser = true;
    extraGroups = [ "wheel" ];
  };

  # Says on /health whether it works, and takes its port from the environment.
  systemd.services.notes = {
    description = "Notes of alice";
    wantedBy = [ "multi-user.target" ];
    environment.PORT = "3000";
    serviceConfig = {
      # It speaks MCP as well. The tools daemon finds it by this line, and alice approves it.
      X-MCP = "http://127.0.0.1:3000/mcp";
      ExecStart = "/srv/notes/bin/notes";
      User = "alice";
      MemoryMax = "512M";
    };
  };

  services.lares = {
    enable = true;

    # ralph commits to repositories of alice, and git refuses those of another user.
    user = "alice";
    group = "users";

    models.coder = {
      source = "qwen2.5-coder-1.5b-instruct";
      aliases = [ "gpt-4o" ];
      contextSize = 8192;
      slots = 2;
      memoryMax = "4 GiB";
    };

    healer.units."notes.service" = {
      probe.http = "http://127.0.0.1:3000/health";
      # Where it may go, and how much memory it may get, until the next boot.
      ports = [ 13000 ];
      portVariable = "PORT";
      memoryMax = "1 GiB";
    };

    # Agents find these at http://127.0.0.1:8091/mcp.
    tools = {
      path = [ pkgs.git ];
      servers = {
        git = {
          command = [ "/srv/mcp/bin/mcp-server-git" ];
          read = [
            "/srv/mcp"
            "/home/alice/src"
          ];
          trusted = true;
        };
        # It sees one directory and no network.
        files = {
          command = [
            "/srv/mcp/bin/mcp-server-filesystem"
            "/home/alice/notes"
          ];
          read = [ "/srv/mcp" ];
          write = [ "/home/alice/notes" ];
        };
      };
      discovery.clientFiles = [ "/home/alice/.claude.json" ];
      # A person is asked before something is changed.
      policy = [
        {
          tools = [
            "files__write_*"
            "files__move_*"
          ];
          action = "ask";
        }
      ];
    };

    ralph = {
      repositories = [ "/home/alice/src" ];
      path = [
        pkgs.gnumake
        pkgs.python3
      ];
    };
  };
}
