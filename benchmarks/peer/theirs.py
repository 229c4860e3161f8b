"""The same step in PyTorch, transformers and peft: as one would write it today, and the way the paper's code goes.

`Peer`: completions are sampled with a key-value cache and without gradient; one teacher-forced pass over them gives the
policy's log-probabilities with gradient; the rewards of all prefixes come from one packed pass behind a 4-D mask; where
few tokens may be chosen only their columns of the head are computed.

`Released`: the gradient goes through the loop that samples, a token a pass; logits are over the whole vocabulary; where
an answer follows Z, every prefix takes a reward pass of its own.
"""

import copy
import dataclasses
import itertools
import pathlib
from collections.abc import Callable

import numpy as np
import torch
import transformers
from peft import PeftModel
from peft import __version__ as peft_version
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache

from peer.problem import Problem, Tool

NEGATIVE = -1e30


@dataclasses.dataclass
class Written:
    """Completions [B, T] and their masks, as `gfn_jax.types.Rollout` has them."""

    completion: Tensor
    token_mask: Tensor
    action_mask: Tensor
    state_mask: Tensor


def log_probs_at(logits: Tensor, wanted: Tensor) -> Tensor:
    """[..., M]: log softmax of logits [..., V] at a few columns."""
    logits = logits.float()
    return logits.gather(-1, wanted) - logits.logsumexp(-1, keepdim=True)


def again(cache: DynamicCache, repeats: int = 1) -> DynamicCache:
    """A cache that may grow while the given one stays; its rows as often as that."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    if repeats > 1:
        new.batch_repeat_interleave(repeats)
    return new


class Peer:
    """A step as a good engineer would write it."""

    def __init__(self, problem: Problem, folder: pathlib.Path, device: str):
        self.problem, self.device = problem, device
        # The attention that transformers has for the model: one kernel for GPT-2, products of matrices for GPT-J.
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=getattr(torch, problem.dtype))
        self.model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).to(device).eval()
        self.lm = self.model.get_base_model()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4)
        names = ("prompt", "context", "answer", "few_shot", "token_ids")
        self.prompt, self.context, self.answer, few_shot, self.ids = (self.tensor(getattr(problem, n)) for n in names)
        self.column_of = torch.zeros(self.lm.config.vocab_size, dtype=torch.long, device=device)
        self.column_of[self.ids] = torch.arange(len(self.ids), device=device)
        self.stop = int(problem.is_stop.argmax())
        self.shots = DynamicCache()
        if len(few_shot):
            with torch.no_grad(), self.model.disable_adapter():
                self.hidden(few_shot[None], self.shots)

    def tensor(self, array: np.ndarray) -> Tensor:
        """On the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def hidden(self, ids: Tensor, cache: DynamicCache | None = None, **given: Tensor) -> Tensor:
        """[B, S, E]: the last hidden states of new tokens behind a cache, which grows."""
        cached = cache is not None
        return self.lm.transformer(input_ids=ids, past_key_values=cache, use_cache=cached, **given).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Over the tokens that may be chosen."""
        head = self.lm.lm_head
        if len(self.ids) == head.out_features:
            return head(hidden).float()
        return F.linear(hidden, head.weight[self.ids], None if head.bias is None else head.bias[self.ids]).float()

    def allowed(self, written: Written) -> Tensor:
        """[B, T, A]: what could be chosen in every state."""
        may_stop, horizon = written.state_mask.cpu().numpy(), self.problem.horizon
        return self.tensor(np.stack([self.problem.allowed(t, may_stop[:, t]) for t in range(horizon)], axis=1))

    def write(self, choose: Callable[[int, Tensor, Callable[[], Tensor]], Tensor]) -> Written:
        """Writes completions token after token.

        Args:
            choose: (state, allowed [B, A], function that gives the logits [B, A]) -> a column a row.
        """
        problem, tool, cache = self.problem, Tool(self.problem), DynamicCache()
        done = np.zeros(problem.rows, bool)
        first = self.hidden(self.prompt, cache)[:, -1]
        cache.batch_repeat_interleave(problem.samples)
        last = first.repeat_interleave(problem.samples, 0)
        columns: list[tuple[np.ndarray, ...]] = []
        token: Tensor | None = None
        for t in range(problem.horizon):

            def read(token: Tensor | None = token) -> Tensor:
                return self.logits(last if token is None else self.hidden(token[:, None], cache)[:, -1])

            forced, allowed = tool.forced(), problem.allowed(t, tool.may_stop())
            drawn = choose(t, self.tensor(allowed), read).cpu().numpy()
            decides = ~done & (forced < 0)
            stops = decides & (drawn == self.stop)
            chosen = np.where(forced < 0, problem.token_ids[drawn], forced)
            chosen = np.where(done, problem.token_ids[self.stop], chosen)
            columns.append((chosen, ~done & ~stops, decides, decides & allowed[:, self.stop]))
            done = done | stops
            tool.step(chosen)
            token = self.tensor(chosen)
            if done.all():
                break
        empty = (np.full_like(chosen, problem.token_ids[self.stop]), *(np.zeros_like(done),) * 3)
        columns += [empty] * (problem.horizon - len(columns))
        return Written(*(self.tensor(np.stack(field, axis=1)) for field in zip(*columns, strict=True)))

    def sample(self, temperature: Tensor) -> Written:
        """Completions from the policy, each row at its own temperature [B, 1]."""

        def choose(t: int, allowed: Tensor, read: Callable[[], Tensor]) -> Tensor:
            if t == self.problem.max_length:  # only the stop is left
                return torch.full((len(allowed),), self.stop)
            logits = (read() / temperature).masked_fill(~allowed, NEGATIVE)
            return torch.multinomial(logits.softmax(-1), 1)[:, 0]

        with torch.no_grad():
            return self.write(choose)

    def score(self, written: Written) -> tuple[Tensor, Tensor]:
        """[B, T]: log q of the choices and of stopping, with gradient."""
        prompt = self.prompt.repeat_interleave(self.problem.samples, 0)
        hidden = self.hidden(torch.cat([prompt, written.completion[:, :-1]], 1))[:, prompt.shape[1] - 1 :]
        logits = self.logits(hidden).masked_fill(~self.allowed(written), NEGATIVE)
        chosen = self.column_of[written.completion]
        found = log_probs_at(logits, torch.stack([chosen, torch.full_like(chosen, self.stop)], -1))
        return found[..., 0] * written.action_mask, found[..., 1] * written.state_mask

    def reward(self, written: Written) -> Tensor:
        """[B, T]: log p(z_1:t Y | demonstrations X) of every prefix, in one pass: Z, then Y behind each prefix."""
        z, problem = written.completion, self.problem
        with torch.no_grad(), self.model.disable_adapter():
            cache = again(self.shots, len(self.context))
            first = self.hidden(self.context, cache)[:, -1:].repeat_interleave(problem.samples, 0)
            before = cache.get_seq_length()
            cache.batch_repeat_interleave(problem.samples)
            answer = self.answer.repeat_interleave(problem.samples, 0)
            positions, sees = self.packed(answer.shape[1] - 1)
            ids = torch.cat([z[:, :-1], answer[:, :-1].repeat(1, problem.horizon)], 1)
            mask = torch.cat([sees.new_ones(len(sees), before), sees], 1)[None, None]
            mask = torch.where(mask, 0.0, torch.finfo(first.dtype).min).to(first.dtype)
            hidden = self.hidden(ids, cache, attention_mask=mask, position_ids=(before + positions)[None])
            states = torch.cat([first, hidden[:, : problem.horizon - 1]], 1)
            targets = torch.stack([z, answer[:, :1].expand_as(z)], -1)
            found = log_probs_at(self.lm.lm_head(states), targets)
            log_z = found[..., 0] * written.token_mask
            log_reward = log_z.cumsum(1) - log_z + found[..., 1]
            if answer.shape[1] > 1:
                blocks = hidden[:, problem.horizon - 1 :]
                rest = answer[:, 1:].repeat(1, problem.horizon)[..., None]
                log_y = log_probs_at(self.lm.lm_head(blocks), rest)[..., 0]
                log_reward = log_reward + log_y.unflatten(1, (problem.horizon, -1)).sum(-1)
        return log_reward

    def packed(self, width: int) -> tuple[Tensor, Tensor]:
        """Positions [S] behind the context, and who sees whom [S, S]: Z, then a block of `width` behind each prefix."""
        horizon = self.problem.horizon
        block = torch.cat([torch.full((horizon - 1,), -1), torch.arange(horizon).repeat_interleave(width)])
        inside = torch.cat([torch.arange(horizon - 1), torch.arange(width).repeat(horizon)])
        prefix = torch.where(block < 0, inside + 1, block)  # tokens of Z that each position sees
        of_z = (block[None] < 0) & (inside[None] < prefix[:, None])
        own = (block[None] >= 0) & (block[:, None] == block[None]) & (inside[:, None] >= inside[None])
        positions = torch.where(block < 0, inside, block + inside)
        return positions.to(self.device), (of_z | own).to(self.device)

    def loss(self, written: Written, log_pf: Tensor, log_pterm: Tensor, log_reward: Tensor) -> Tensor:
        """SubTB at lambda 1 over all pairs of states that may stop, divided by their number."""
        alive = written.state_mask
        u = log_reward - log_pterm - (log_pf.cumsum(1) - log_pf)
        pairs = (alive[:, :, None] & alive[:, None, :]).triu(1)
        squares = (u[:, :, None] - u[:, None, :]).square()
        return torch.where(pairs, squares, 0).sum() / pairs.sum().clamp(min=1)

    def update(self, loss: Tensor) -> None:
        """Backward pass and optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def temperature(self) -> Tensor:
        """[B, 1]: half of the rows are drawn at a temperature from [0.5, 2]."""
        drawn = 0.5 + 1.5 * torch.rand(self.problem.rows, 1)
        return torch.where(torch.rand_like(drawn) < 0.5, drawn, 1.0).to(self.device)

    def step(self, clock: Callable[[], float]) -> dict[str, float]:
        """Seconds of the parts of one step, and of all."""
        times = [clock()]
        written = self.sample(self.temperature())
        times.append(self.now(clock))
        log_reward = self.reward(written)
        times.append(self.now(clock))
        self.update(self.loss(written, *self.score(written), log_reward))
        times.append(self.now(clock))
        return self.parts(times)

    def now(self, clock: Callable[[], float]) -> float:
        """The time when all that was asked for is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return clock()

    @staticmethod
    def parts(times: list[float]) -> dict[str, float]:
        """Four times as the seconds of three parts and of the step."""
        rollout, reward, update = (after - before for before, after in itertools.pairwise(times))
        return {"rollout": rollout, "reward": reward, "update": update, "step": times[-1] - times[0]}

    def differences(self, reference: dict[str, np.ndarray]) -> dict[str, float]:
        """What this side makes of gfn_jax's completions: the largest |a - b| / max(1, |b|) of each quantity."""
        timed = self.problem
        self.problem = dataclasses.replace(timed, min_length=1)  # they may stop early
        masks = (reference[name] for name in ("completion", "token_mask", "action_mask", "state_mask"))
        given = Written(*map(self.tensor, masks))
        log_pf, log_pterm = self.replayed(given)
        log_reward = self.reward(given) * given.state_mask
        loss = self.loss(given, log_pf, log_pterm, log_reward)
        self.problem = timed
        found = {"log_pf": log_pf, "log_pterm": log_pterm, "log_reward": log_reward, "loss": loss}
        return {name: apart(value.detach().cpu().numpy(), reference[name]) for name, value in found.items()}

    def replayed(self, given: Written) -> tuple[Tensor, Tensor]:
        """Log-probabilities of given completions, having seen that they are written under the same rules here."""
        chosen = self.column_of[given.completion]
        with torch.no_grad():
            written = self.write(lambda t, allowed, read: chosen[:, t])
        check_same(written, given)
        return self.score(given)

    def peak_device_mib(self) -> float | None:
        """Of the device's memory, where it counts."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else None

    @staticmethod
    def versions() -> dict[str, str]:
        """Of what computes here."""
        return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft_version}


class Released(Peer):
    """A step the way the paper's code goes."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Over the whole vocabulary; only those that may be chosen are looked at."""
        return self.lm.lm_head(hidden).float()

    def generate(
        self, temperature: Tensor, given: Tensor | None = None, gradient: bool = True
    ) -> tuple[Written, Tensor, Tensor]:
        """Completions with their log-probabilities, whose gradient goes through the loop.

        Args:
            temperature: [B, 1].
            given: [B, T] tokens to be taken instead of drawing.
            gradient: whether it is kept.
        """
        log_pf, log_pterm = [], []

        def choose(t: int, allowed: Tensor, read: Callable[[], Tensor]) -> Tensor:
            open_ids = torch.zeros(len(allowed), self.lm.config.vocab_size, dtype=torch.bool, device=self.device)
            open_ids[:, self.ids] = allowed
            logits = read().masked_fill(~open_ids, NEGATIVE)
            log_probs = logits.log_softmax(-1)
            with torch.no_grad():
                drawn = torch.multinomial((logits / temperature).softmax(-1), 1)
                drawn = drawn if given is None else given[:, t : t + 1]
            log_pf.append(log_probs.gather(-1, drawn)[:, 0])
            log_pterm.append(log_probs[:, self.ids[self.stop]])
            return self.column_of[drawn[:, 0]]

        with torch.set_grad_enabled(gradient):
            written = self.write(choose)
            found = (torch.stack(scores, 1) for scores in (log_pf, log_pterm))
            room = self.problem.horizon - len(log_pf)
            of_action, of_stop = (F.pad(scores, (0, room)) for scores in found)
        return written, of_action * written.action_mask, of_stop * written.state_mask

    def reward(self, written: Written) -> Tensor:
        """One pass where Y is the stop alone; else one a prefix, all logits of all of its tokens."""
        z, samples = written.completion, self.problem.samples
        context, answer = (x.repeat_interleave(samples, 0) for x in (self.context, self.answer))
        begin, rewards = context.shape[1] - 1, []
        with torch.no_grad(), self.model.disable_adapter():
            if answer.shape[1] == 1:
                log_probs = self.lm.lm_head(self.hidden(torch.cat([context, z[:, :-1]], 1), again(self.shots, len(z))))
                log_probs = log_probs.float().log_softmax(-1)[:, begin:]
                log_z = log_probs.gather(-1, z[..., None])[..., 0] * written.token_mask
                return log_z.cumsum(1) - log_z + log_probs.gather(-1, answer[:, None].expand_as(z[..., None]))[..., 0]
            for t in range(self.problem.horizon):
                ids = torch.cat([context, z[:, :t], answer], 1)
                log_probs = self.lm.lm_head(self.hidden(ids, again(self.shots, len(z)))).float().log_softmax(-1)
                rewards.append(log_probs[:, begin:-1].gather(-1, ids[:, begin + 1 :, None]).sum((1, 2)))
        return torch.stack(rewards, 1)

    def loss(self, written: Written, log_pf: Tensor, log_pterm: Tensor, log_reward: Tensor) -> Tensor:
        """SubTB, one distance between states after another; states that may not stop are stepped over."""
        alive, total, count = written.state_mask, log_pf.new_zeros(()), 0
        flow, before = log_reward - log_pterm, log_pf.cumsum(1) - log_pf
        for length in range(1, self.problem.horizon):
            residual = flow[:, length:] - flow[:, :-length] - (before[:, length:] - before[:, :-length])
            pairs = alive[:, length:] & alive[:, :-length]
            total, count = total + torch.where(pairs, residual.square(), 0).sum(), count + pairs.sum()
        return total / count.clamp(min=1)

    def step(self, clock: Callable[[], float]) -> dict[str, float]:
        """Seconds of the parts of one step, and of all."""
        times = [clock()]
        written, log_pf, log_pterm = self.generate(self.temperature())
        times.append(self.now(clock))
        log_reward = self.reward(written)
        times.append(self.now(clock))
        self.update(self.loss(written, log_pf, log_pterm, log_reward))
        times.append(self.now(clock))
        return self.parts(times)

    def replayed(self, given: Written) -> tuple[Tensor, Tensor]:
        """Log-probabilities of given completions, from the loop itself."""
        one = torch.ones(1, 1, device=self.device)
        written, log_pf, log_pterm = self.generate(one, given.completion, gradient=False)
        check_same(written, given)
        return log_pf, log_pterm


def check_same(written: Written, given: Written) -> None:
    """Raises ValueError where the two sides do not write a completion under the same rules."""
    for field in dataclasses.fields(Written):
        if not torch.equal(getattr(written, field.name), getattr(given, field.name)):
            raise ValueError(f"the two sides' rules differ: {field.name} is not the same")


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest |a - b| / max(1, |b|)."""
    return float(np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected))))


SIDES = {"peer": Peer, "released": Released}
