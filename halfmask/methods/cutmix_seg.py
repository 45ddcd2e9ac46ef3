"""CutMix-Seg: a mean teacher whose target for a mixed image is the same mixture of its predictions.

French et al., "Semi-supervised semantic segmentation needs strong, varied perturbations", BMVC 2020,
arXiv:1906.01916.

    x_m  = M x_1 + (1 - M) x_0           M: one box of half the area; x_0, x_1: two independent unlabeled batches
    q    = softmax(M f'(x_1) + (1 - M) f'(x_0))                  f' = EMA teacher, no gradient
    w    = mean over all pixels of 1[max q >= tau]               one number per batch
    L_u  = mean over all pixels of w v sum_k (softmax f(x_m)_k - q_k)^2      v = mixed validity
    L    = CE(f(x_l), y) + lambda L_u
    f'   = d f' + (1 - d) f                                      after the optimizer step

The student sees colored images, the teacher plain ones, as in the published runs (`strong_color`).

Where paper and code differ, the code is followed: `per_pixel` weights (each pixel by its own 1[max q >= tau]) are an
option that the published runs leave off.

Deviations: the teacher labels in evaluation mode, with averaged statistics; in the published code it labels in
training mode, where the frozen norms of the encoder make the two alike (`teacher_norm: own` is that form). Statistics
of the encoder's batch norms are frozen in the published runs (`freeze_norm`). Colors are those of UniMatch with a
jitter of the published strength, without blur.
"""
