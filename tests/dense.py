"""κ of one parameter from the whole Hessian: slow, and plain to see."""

import torch
import torch.nn.functional as F


def dense_kappa(model, parameter_name, inputs, labels, *, groups=1, transposed=False, tied=()):
    """Σ_{s,t} ⟨w_s, w_t⟩ Tr(H_st) from the whole Hessian of the mean loss in one parameter."""
    parameters = dict(model.named_parameters())
    weight = parameters[parameter_name].detach()

    def loss(flat):
        replaced = {**parameters, parameter_name: flat.reshape(weight.shape)}
        logits = torch.func.functional_call(model, replaced, (inputs,), tie_weights=True)
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(loss, weight.flatten())
    index = torch.arange(weight.numel()).reshape(weight.shape)
    rows = (index.T if transposed else index.flatten(1))
    total = 0.0
    for group in rows.reshape(groups, -1, rows.shape[-1]):
        for s in group:
            for t in group:
                inner = weight.flatten()[s] @ weight.flatten()[t]
                total += float(inner * hessian[s][:, t].diagonal().sum())
    return total
