"""What of the public surface does not yet refuse wrong values as it should (tests/test_public_surface.py).

The list only gets shorter: an entry that is mended must leave it. Nothing of another room is in it, and nothing new may
come in: annotate the parameter and put ``@checked`` (context_diffusion/signatures.py) on the function.
"""

ALIGNMENT = {
    "alignment.aligner.style_aligned(blend)",
    "alignment.aligner.style_aligned(branches)",
    "alignment.aligner.style_aligned(references)",
    "alignment.aligner.style_aligned(settings)",
    "alignment.blending.blend_trajectories(blend)",
    "alignment.blending.blend_trajectories(references)",
    "alignment.blending.linear(vectors)",
    "alignment.blending.slerp(end)",
    "alignment.blending.slerp(start)",
    "alignment.blending.slerp(t)",
    "alignment.blending.weighted_slerp(max_iterations)",
    "alignment.blending.weighted_slerp(vectors)",
    "alignment.settings.StyleSettings(first_step)",
    "alignment.settings.StyleSettings(full_attention)",
    "alignment.settings.StyleSettings(last_step)",
    "alignment.settings.StyleSettings(placement)",
    "alignment.settings.StyleSettings(subject_scale)",
    "alignment.settings.StyleSettings.per_reference(count)",
    "alignment.settings.StyleSettings.per_reference(name)",
    "alignment.trajectory.Trajectory(alphas)",
    "alignment.trajectory.Trajectory(embeddings)",
    "alignment.trajectory.Trajectory(latents)",
    "alignment.trajectory.Trajectory(prompts)",
    "alignment.trajectory.Trajectory(timesteps)",
    "alignment.trajectory.Trajectory.at(timestep)",
    "alignment.trajectory.Trajectory.check(pipe)",
    "alignment.trajectory.Trajectory.join(trajectories)",
    "alignment.trajectory.Trajectory.load(path)",
    "alignment.trajectory.Trajectory.on_line(time)",
    "alignment.trajectory.Trajectory.save(path)",
}
KNOWN = ALIGNMENT
