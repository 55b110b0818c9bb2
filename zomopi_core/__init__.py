from .catalog import zo_mopi
from .method import Method
from .objective import apply_step, perturb
from .orthogonalize import newton_schulz, polar, streaming_power_iteration
from .sampling import Draw, HostSampler, Sampler
from .update import constant, cosine_decay, linear_decay
