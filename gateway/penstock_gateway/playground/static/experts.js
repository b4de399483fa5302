// The second view: which experts the tokens went to, and who waits.

const SCALE = [
  [247, 251, 255],
  [107, 174, 214],
  [8, 48, 107],
];

/** Returns the colour of an expert with `share` times the mean load, as [red, green, blue]. */
export function colourOf(share) {
  const at = Math.min(1, Math.max(0, share / 2)) * (SCALE.length - 1);
  const low = Math.min(SCALE.length - 2, Math.floor(at));
  return SCALE[low].map((from, channel) => Math.round(from + (SCALE[low + 1][channel] - from) * (at - low)));
}

/** Draws a row for each layer and a column for each expert: one pixel each, which the page enlarges. */
export function drawHeat(canvas, layers) {
  const columns = Math.max(1, ...layers.map((layer) => layer.expert_token_counts.length));
  canvas.width = columns;
  canvas.height = Math.max(1, layers.length);
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  layers.forEach((layer, row) => {
    const counts = layer.expert_token_counts;
    const mean = counts.reduce((sum, count) => sum + count, 0) / counts.length;
    counts.forEach((count, column) => {
      image.data.set([...colourOf(mean > 0 ? count / mean : 0), 255], 4 * (row * columns + column));
    });
  });
  context.putImageData(image, 0, 0);
  // Cells as square as the page's width allows, and never thinner than a finger's width of the whole.
  canvas.style.aspectRatio = `${columns} / ${Math.max(layers.length, columns / 12)}`;
}

/** Fills the table that says the same in numbers. */
export function fillLayers(body, layers) {
  body.replaceChildren(
    ...layers.map((layer) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = String(layer.layer_index);
      const hot = layer.hot_experts.slice(0, 8).join(", ") + (layer.hot_experts.length > 8 ? ", ..." : "");
      row.append(head);
      for (const text of [layer.imbalance.toFixed(2), layer.normalized_entropy.toFixed(3), hot || "none"]) {
        row.append(Object.assign(document.createElement("td"), { textContent: text }));
      }
      return row;
    }),
  );
}

/** Returns what the picture shows, in words. */
export function describe(load) {
  const worst = load.layers.reduce((a, b) => (b.imbalance > a.imbalance ? b : a), load.layers[0]);
  const experts = load.layers[0]?.expert_token_counts.length ?? 0;
  return (
    `Load of ${experts} experts in ${load.layers.length} layers over ${load.window_seconds.toFixed(0)} s: ` +
    `${load.token_count} tokens. Layer ${worst?.layer_index ?? 0} is the least even: its busiest expert has ` +
    `${(worst?.imbalance ?? 1).toFixed(2)} times the mean.`
  );
}

const FIGURES = [
  ["running_sequences", "Sequences running"],
  ["capacity_sequences", "Places"],
  ["queued_calls", "Calls waiting"],
  ["queued_tokens", "Tokens waiting"],
  ["resumable_streams", "Resumable streams"],
  ["engine_restarts", "Engine restarts"],
];

/** Fills the list of the queue's numbers. */
export function fillQueue(list, queue) {
  list.replaceChildren(
    ...FIGURES.filter(([name]) => name in queue).map(([name, words]) => {
      const entry = document.createElement("div");
      entry.append(
        Object.assign(document.createElement("dt"), { textContent: words }),
        Object.assign(document.createElement("dd"), { textContent: String(queue[name]) }),
      );
      return entry;
    }),
  );
}
