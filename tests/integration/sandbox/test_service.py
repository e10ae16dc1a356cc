"""The execution service and its client over a real server, with real jails."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from nats.micro.request import ERROR_CODE_HEADER

from bus.codec import decode, encode
from bus.messages import Busy, CancelExecution, ExecutionRequest, ExecutionResult, Outcome
from configs.schema import SandboxConfig
from launch.views import sandbox_line
from sandbox.check import check
from sandbox.client import SandboxClient, SandboxError, statistics
from sandbox.jail import Jail, SandboxUnavailable
from sandbox.pool import Pool
from sandbox.program import cancel_subject
from sandbox.service import SandboxService
from tests.integration.sandbox.traces import until

CONFIG = SandboxConfig(
    concurrency=2, packages=(), max_output_bytes=10_000, request_timeout_s=60.0, cgroups="prefer", warm=2
)


@pytest.fixture(scope="module")
async def pool() -> AsyncIterator[Pool]:
    async with Pool(Jail(CONFIG)) as pool:
        yield pool


@pytest.fixture
def subject(bus_address) -> str:
    return f"{bus_address.run}.execute"


@pytest.fixture
async def another(connection, subject, pool):
    """Starts one more service; all are drained at the end."""
    started: list[SandboxService] = []

    async def another(pool: Pool = pool, config: SandboxConfig = CONFIG) -> SandboxService:
        service = SandboxService(connection, subject, pool, config, f"sandbox-{len(started)}")
        await service.start()
        started.append(service)
        return service

    yield another
    for service in started:
        await service.drain(0.0)


@pytest.fixture
async def service(another):
    return await another()


@pytest.fixture
def client(connection, subject) -> SandboxClient:
    return SandboxClient(connection, subject, CONFIG)


async def test_round_trip(service, client):
    result = await client.execute("import sys\nprint(6 * 7)\nsys.exit(2)", 10.0)
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.EXITED, 2, "42\n")
    assert (service.executions, service.failures, service.in_flight) == (1, 0, 0)
    assert service.busy_seconds >= result.seconds > 0


async def test_what_the_model_caused_is_a_result(service, client):
    assert (await client.execute("while True: pass", 0.3)).outcome is Outcome.TIMEOUT
    assert (await client.execute("while True: print('y' * 100)", 10.0)).outcome is Outcome.OUTPUT_LIMIT
    assert "longer than the limit" in (await client.execute("#" * (CONFIG.max_code_bytes + 1), 10.0)).stderr
    assert "not valid Unicode" in (await client.execute("'\udc80'", 10.0)).stderr
    assert "null bytes" in (await client.execute("\0", 10.0)).stderr
    assert service.failures == 0


async def test_output_that_grows_in_decoding_still_travels(service, client):
    code = "import os; os.write(1, b'\\xff' * 10_000); os.write(2, b'\\xff' * 10_000)"
    assert (await client.execute(code, 10.0)).stdout == "\ufffd" * 10_000


async def test_too_long_code_from_another_client_is_the_models_error(service, connection, subject):
    request = ExecutionRequest(id="a", code="#" * (CONFIG.max_code_bytes + 1), timeout_s=1.0)
    result = decode((await connection.request(subject, encode(request), timeout=60)).data, ExecutionResult)
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 1)


async def test_a_full_service_answers_busy_at_once_and_the_client_comes_back(service, client, connection, subject):
    code = "import time; time.sleep(60)"
    long = [asyncio.create_task(client.execute(code, 60.0)) for _ in range(CONFIG.concurrency)]
    await until(lambda: service.in_flight == CONFIG.concurrency)
    request = encode(ExecutionRequest(id="a", code="print(1)", timeout_s=1.0))
    assert decode((await connection.request(subject, request, timeout=60)).data, Busy, ExecutionResult) == Busy()
    next_one = asyncio.create_task(client.execute("print(1)", 10.0))
    for call in long:
        call.cancel()
    assert (await next_one).stdout == "1\n"
    await until(lambda: service.in_flight == 0)
    assert (service.cancelled, service.executions) == (CONFIG.concurrency, 1)


async def test_many_calls_on_few_places_are_all_served(service, client):
    results = await asyncio.gather(*(client.execute(f"print({n})", 10.0) for n in range(10)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(10)]


@pytest.mark.parametrize(
    "data", [b"", b"\xff", encode(Busy()), encode(ExecutionRequest(id="a", code="", timeout_s=1.0))[:-3]], ids=repr
)
async def test_a_malformed_request_is_an_error_response(service, client, connection, subject, data):
    reply = await connection.request(subject, data, timeout=60)
    assert reply.headers[ERROR_CODE_HEADER] == "400"
    assert (await client.execute("print(1)", 10.0)).stdout == "1\n"


async def test_a_request_that_asks_for_no_answer_is_left_alone(service, client, connection, subject, caplog):
    """Neither its program nor an answer, and no error that nobody retrieves."""
    loop = asyncio.get_running_loop()
    unretrieved: list[dict] = []
    loop.set_exception_handler(lambda loop, context: unretrieved.append(context))
    for data in (b"", b"\xff", encode(ExecutionRequest(id="a", code="print(1)", timeout_s=1.0))):
        await connection.publish(subject, data)
    assert (await client.execute("print(2)", 10.0)).stdout == "2\n"
    gc.collect()
    await asyncio.sleep(0)
    assert (service.executions, service.in_flight, unretrieved) == (1, 0, [])
    assert not [record for record in caplog.records if record.name != "sandbox.service"]


async def test_without_a_service_the_client_gives_up_at_its_deadline(connection, subject):
    client = SandboxClient(connection, subject, CONFIG.model_copy(update={"request_timeout_s": 0.5}))
    with pytest.raises(SandboxError, match=rf"{subject} .*no sandbox service is there"):
        await client.execute("print(1)", 10.0)


async def test_the_client_waits_for_a_service_that_starts_later(another, client):
    waiting = asyncio.create_task(client.execute("print(1)", 10.0))
    await asyncio.sleep(0.2)
    await another()
    assert (await waiting).stdout == "1\n"


async def test_a_failing_sandbox_is_an_error_never_a_result(connection, subject, another):
    """A jail whose interpreter cannot start within its address space."""
    config = CONFIG.model_copy(update={"memory_mb": 1, "request_timeout_s": 2.0, "warm": 0})
    async with Pool(Jail(config)) as pool:
        service = await another(pool, config)
        with pytest.raises(SandboxError, match=r"the sandbox failed: .*nsjail returned"):
            await SandboxClient(connection, subject, config).execute("print(1)", 10.0)
        assert service.failures == service.executions > 1


async def test_a_jail_that_cannot_be_started_counts_as_a_failed_execution(
    connection, subject, another, pool, monkeypatch: pytest.MonkeyPatch
):
    async def refused(*_: object) -> None:
        raise OSError("no process can be made")

    monkeypatch.setattr(pool, "run", refused)
    service = await another()
    config = CONFIG.model_copy(update={"request_timeout_s": 1.0})
    with pytest.raises(SandboxError, match="no process can be made"):
        await SandboxClient(connection, subject, config).execute("print(1)", 10.0)
    assert service.failures == service.executions >= 1


async def test_draining_lets_programs_finish(service, client):
    running = asyncio.create_task(client.execute("import time; time.sleep(2); print('done')", 10.0))
    await until(lambda: service.in_flight == 1)
    await service.drain(20.0)
    assert (service.in_flight, service.executions) == (0, 1)
    assert (await running).stdout == "done\n"


async def test_requests_that_wait_in_a_service_that_is_drained_are_answered(service, connection, subject):
    """They have arrived, but the service's turn has not come: nobody else would ever answer them."""
    inbox = connection.new_inbox()
    answers = await connection.subscribe(inbox)
    for n in range(20):
        await connection.publish(
            subject, encode(ExecutionRequest(id=str(n), code="print(1)", timeout_s=5.0)), reply=inbox
        )
    await service.drain(0.0)
    for _ in range(20):
        await answers.next_msg(timeout=60)


async def test_what_a_drained_service_cut_runs_elsewhere(service, client, another):
    running = asyncio.create_task(client.execute("import time; time.sleep(2); print('done')", 10.0))
    await until(lambda: service.in_flight == 1)
    await service.drain(0.0)
    assert (service.in_flight, service.executions) == (0, 0)
    other = await another()
    assert (await running).stdout == "done\n"
    assert (service.executions, other.executions) == (0, 1)


async def test_two_services_share_the_work_and_one_may_leave(service, client, another):
    other = await another()
    calls = [asyncio.create_task(client.execute(f"import time; time.sleep(0.2); print({n})", 10.0)) for n in range(12)]
    await until(lambda: other.executions > 0)
    await other.drain(0.0)
    assert [(await call).stdout for call in calls] == [f"{n}\n" for n in range(12)]
    assert service.executions > 0
    assert service.executions + other.executions == 12


async def test_limits_beyond_the_servers_messages_are_refused_at_the_start(another, connection):
    config = CONFIG.model_copy(update={"max_output_bytes": connection.max_payload})
    with pytest.raises(SandboxUnavailable, match="max_payload"):
        await another(config=config)


async def test_services_are_discovered_with_their_statistics(service, another, client, connection, subject, bus):
    assert await statistics(connection, bus.names.execution) == []
    other = await another()
    await client.execute("print(1)", 10.0)
    found = await statistics(connection, subject)
    assert [each.name for each in found] == ["sandbox-0", "sandbox-1"]
    assert sum(each.executions for each in found) == service.executions + other.executions == 1
    assert {each.slots for each in found} == {CONFIG.concurrency}
    # What `zerotir status` makes of it.
    assert "sandbox-0" in sandbox_line(found[0])
    assert f"0 of {CONFIG.concurrency} slots in use" in sandbox_line(found[0])


async def test_a_call_that_is_given_up_frees_its_place(service, client):
    running = asyncio.create_task(client.execute("import time; time.sleep(60)", 60.0))
    await until(lambda: service.in_flight == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: service.in_flight == 0)
    assert (service.cancelled, service.executions) == (1, 0)
    assert (await client.execute("print(1)", 10.0)).stdout == "1\n"


async def test_a_call_that_vanishes_without_a_word_costs_no_more_than_its_limit(service, connection, subject):
    request = ExecutionRequest(id="lost", code="import time; time.sleep(60)", timeout_s=2.0)
    await connection.publish(subject, encode(request), reply=connection.new_inbox())
    await until(lambda: service.in_flight == 1)
    await until(lambda: service.in_flight == 0)
    assert service.executions == 1


async def test_nonsense_instead_of_a_cancellation_harms_nobody(service, client, connection, subject):
    running = asyncio.create_task(client.execute("import time; time.sleep(2); print(1)", 10.0))
    await until(lambda: service.in_flight == 1)
    for data in (b"", b"\xff", encode(CancelExecution(id="unknown"))):
        await connection.publish(cancel_subject(subject), data)
    assert (await running).stdout == "1\n"


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("inf"), float("nan"), 1e9])
async def test_a_time_that_is_none_is_an_error_response(service, connection, subject, timeout_s):
    data = encode(ExecutionRequest.model_construct(id="a", code="print(1)", timeout_s=timeout_s))
    reply = await connection.request(subject, data, timeout=60)
    assert reply.headers[ERROR_CODE_HEADER] == "400"


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(SandboxUnavailable, match="pip install no_such_package"):
        Jail(CONFIG.model_copy(update={"packages": ("no_such_package",)}))


async def test_a_jail_too_small_for_its_packages_is_refused_by_the_check():
    config = CONFIG.model_copy(update={"packages": ("numpy",), "memory_mb": 40})
    with pytest.raises(SandboxUnavailable, match=r"raise sandbox\.memory_mb"):
        await check(Jail(config))
