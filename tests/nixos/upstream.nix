# A machine with a scripted model: whatever is asked, it gives the answer in /var/lib/scripted/answer.
{ lib, pkgs, ... }:
{
  services.lares.coordinator.upstreams.scripted = {
    url = "http://127.0.0.1:9000/v1";
    models.scripted = "scripted";
  };
  services.lares.agents.builtin.model = lib.mkDefault "scripted";

  systemd.services.scripted = {
    description = "OpenAI-compatible server with prepared answers";
    wantedBy = [ "multi-user.target" ];
    preStart = "test -e /var/lib/scripted/answer || echo hello >/var/lib/scripted/answer";
    serviceConfig = {
      ExecStart = "${lib.getExe pkgs.python3Minimal} ${./upstream.py} 9000 /var/lib/scripted/answer";
      StateDirectory = "scripted";
    };
  };
}
