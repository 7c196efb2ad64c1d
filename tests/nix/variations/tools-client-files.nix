# Servers that a person's MCP clients know: the unit runs as that person and sees these files and nothing else of a home.
{
  module = {
    users.users.ada = {
      isNormalUser = true;
      group = "users";
    };
    services.lares = {
      user = "ada";
      group = "users";
      tools.discovery.clientFiles = [
        "~/.claude.json"
        "/home/ada/.cursor/mcp.json"
      ];
    };
  };
  settings.tools.discovery.client_files = [
    "~/.claude.json"
    "/home/ada/.cursor/mcp.json"
  ];
  units."lares-tools.service" = {
    has = [
      "User=ada"
      "ProtectHome=tmpfs"
      "BindReadOnlyPaths=-/home/ada/.claude.json"
      "BindReadOnlyPaths=-/home/ada/.cursor/mcp.json"
    ];
    lacks = [
      "\nBindPaths="
      "IPAddressDeny"
    ];
  };
}
