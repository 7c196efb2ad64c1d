{
  title = "A database that does not let the healer in";
  module =
    { lib, ... }:
    {
      services.lares.models.coder.path = "/srv/models/coder.gguf";
      services.postgresql.authentication = lib.mkForce ''
        local all all peer
      '';
    };
  message = ''
    services.postgresql.authentication lacks the line that lets the healer in: lib.mkForce replaces all of it. Add
      local lares lares peer map=lares
    before the others, or set services.lares.healer.enable = false.
  '';
}
