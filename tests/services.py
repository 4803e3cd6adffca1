"""Real servers from Debian's packages, for the tests to talk to. Each has a free port of loopback, a configuration and
a
folder.

In CI they must be installed; elsewhere a test whose server is missing is skipped with the reason.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .certificates import AUTHORITY, certificate
from .peers import PEER_TIMEOUT, unused_port, wait_until_it_listens
from .processes import program, unavailable


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder that other users can access too, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        where.chmod(0o755)
        yield where


@contextmanager
def running(where: Path, port: int, *command: str | Path) -> Iterator[None]:
    """A server in the foreground. The block begins when it listens, and ends when all its processes have ended."""
    with (where / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        try:
            wait_until_it_listens(port, while_running=process)
        except ConnectionError:
            raise AssertionError((where / "output").read_text()[-2000:]) from None
        yield
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate the server and its children, as Dovecot would wait up to six seconds for them."""
    signal_all(process, signal.SIGTERM)
    try:
        process.wait(PEER_TIMEOUT)
    finally:
        signal_all(process, signal.SIGKILL)
        process.wait()


def signal_all(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and its children, if they are still running."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def write_certificate(where: Path) -> Path:
    path = where / "server.pem"
    path.write_bytes(b"".join(blob.bytes() for blob in (certificate().private_key_pem, *certificate().cert_chain_pems)))
    AUTHORITY.cert_pem.write_to_path(where / "ca.pem")
    return path


@contextmanager
def redis() -> Iterator[int]:
    """redis-server without persistence. Gives its port."""
    port = unused_port()
    limits = "--client-output-buffer-limit", "normal 0 0 0", "--proto-max-bulk-len", "2gb"
    with folder() as where, running(
        where, port, program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "",
        "--appendonly", "no", "--dir", where, *limits,
    ):  # fmt: skip
        yield port


@dataclass(frozen=True)
class WebServer:
    root: Path
    port: int
    tls_port: int


@contextmanager
def nginx() -> Iterator[WebServer]:
    """nginx, serving the files of a folder."""
    server_program = program("nginx")
    with folder() as where:
        web = WebServer(where, unused_port(), unused_port())
        pem = write_certificate(where)
        paths = "\n".join(
            f"    {kind}_temp_path {where / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (where / "nginx.conf").write_text(f"""\
daemon off;
master_process off;
pid {where}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
{paths}
    server {{
        listen 127.0.0.1:{web.port};
        listen 127.0.0.1:{web.tls_port} ssl;
        ssl_certificate {pem};
        ssl_certificate_key {pem};
        root {where};
    }}
}}
""")
        with running(where, web.port, server_program, "-e", "stderr", "-p", where, "-c", where / "nginx.conf"):
            yield web


@contextmanager
def haproxy(ports: Sequence[int], version: str) -> Iterator[int]:
    """HAProxy in front of some ports of loopback, to which it sends PROXY headers.

    :param version: of the PROXY protocol, ``"v1"`` or ``"v2"``
    :return: its port
    """
    option = {"v1": "send-proxy", "v2": "send-proxy-v2"}[version]
    front = unused_port()
    servers = "\n".join(f"    server s{port} 127.0.0.1:{port} {option}" for port in ports)
    with folder() as where:
        (where / "haproxy.cfg").write_text(f"""\
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen front
    bind 127.0.0.1:{front}
    balance roundrobin
{servers}
""")
        with running(where, front, program("haproxy"), "-db", "-f", where / "haproxy.cfg"):
            yield front


@dataclass(frozen=True)
class MailServer:
    user: str
    password: str
    smtp_port: int
    imap_port: int
    pop3_port: int

    @property
    def address(self) -> str:
        return f"{self.user}@localhost"


@contextmanager
def mail() -> Iterator[MailServer]:
    """Exim accepts mail for a user, with STARTTLS; Dovecot serves it over IMAP and POP3, with STARTTLS.

    Without TLS, Dovecot refuses to authenticate clients, except those with its own address, such as those that connect
    from 127.0.0.1 to 127.0.0.1. So a successful login of a test does not prove that it used TLS.
    """
    exim, dovecot = program("exim4"), program("dovecot")
    if os.geteuid() != 0:
        unavailable("mail servers have to be started by root")
    server = MailServer("someone", "secret", unused_port(), unused_port(), unused_port())
    with ExitStack() as stack:
        where = stack.enter_context(folder())
        owner = pwd.getpwnam("Debian-exim")
        write_certificate(where)
        for name in ("spool", "mail", "run", "log"):
            (where / name).mkdir()
            os.chown(where / name, owner.pw_uid, owner.pw_gid)
        os.chown(where / "server.pem", owner.pw_uid, owner.pw_gid)
        (where / "exim.conf").write_text(EXIM.format(where=where))
        (where / "dovecot.conf").write_text(
            DOVECOT.format(where=where, server=server, uid=owner.pw_uid, gid=owner.pw_gid)
        )
        smtp = f"127.0.0.1.{server.smtp_port}"
        exim_command = exim, "-C", where / "exim.conf", "-bdf", "-oX", smtp, "-oP", where / "exim.pid"
        stack.enter_context(running(where, server.smtp_port, *exim_command))
        stack.enter_context(running(where / "run", server.imap_port, dovecot, "-F", "-c", where / "dovecot.conf"))
        wait_until_it_listens(server.pop3_port)
        yield server


EXIM = """\
primary_hostname = localhost
domainlist local_domains = localhost
spool_directory = {where}/spool
log_file_path = {where}/log/%slog
exim_user = Debian-exim
exim_group = Debian-exim
deliver_drop_privilege = true
never_users =
keep_environment =
host_lookup =
rfc1413_hosts =
smtp_accept_max = 0
smtp_accept_queue_per_connection = 0
message_size_limit = 200M
tls_advertise_hosts = *
tls_certificate = {where}/server.pem
acl_smtp_rcpt = accept_local
begin acl
accept_local:
  require domains = +local_domains
  accept
begin routers
local:
  driver = accept
  transport = maildir
begin transports
maildir:
  driver = appendfile
  directory = {where}/mail
  maildir_format = true
  user = Debian-exim
begin retry
begin rewrite
begin authenticators
"""

DOVECOT = """\
protocols = imap pop3
listen = 127.0.0.1
base_dir = {where}/run
state_dir = {where}/run
log_path = /dev/stderr
mail_location = maildir:{where}/mail
first_valid_uid = 1
disable_plaintext_auth = yes
ssl = required
ssl_cert = <{where}/server.pem
ssl_key = <{where}/server.pem
passdb {{
  driver = static
  args = password={server.password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={where}/mail
}}
service imap-login {{
  inet_listener imap {{
    port = {server.imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {server.pop3_port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
"""
