// The pencil examples of chapters 3 and 4. csd_lib computes the same: tests/site/pages.py compares.
"use strict";

const onCircle = (degrees) =>
  degrees.map((degree) => [Math.cos((degree * Math.PI) / 180), Math.sin((degree * Math.PI) / 180)]);
const cosine = (a, b) => a[0] * b[0] + a[1] * b[1];
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** For each student feature as anchor: the probability of each feature, and the anchor's loss. */
function csd(students, teachers, classes, temperature) {
  const contrast = [...students, ...teachers];
  const classOf = [...classes, ...classes];
  return students.map((anchor, i) => {
    const weights = contrast.map((f, j) => (j === i ? 0 : Math.exp(cosine(anchor, f) / temperature)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    const probabilities = weights.map((weight) => weight / sum);
    const isPositive = classOf.map((name, j) => name === classes[i] && j !== i);
    const loss = -mean(probabilities.filter((_, j) => isPositive[j]).map(Math.log));
    return { probabilities, isPositive, loss };
  });
}

/** For each image as query: the others, nearest first, and how many wrong ones come too early. */
function search(points, classes) {
  return points.map((query, i) => {
    // Rounded, so that equal similarities tie; among equals a right image comes first.
    const similarity = points.map((point) => Math.round(cosine(query, point) * 2 ** 24));
    const isRight = (j) => classes[j] === classes[i];
    const order = [...points.keys()].filter((j) => j !== i);
    order.sort((a, b) => similarity[b] - similarity[a] || isRight(b) - isRight(a));
    return { order, isRight: order.map(isRight), wrongBefore: order.findIndex(isRight) };
  });
}

const row = (name, cells) => `<tr><th scope="row">${name}</th>${cells.join("")}</tr>`;
const head = (name, names) =>
  `<tr>${[name, ...names].map((text) => `<th scope="col">${text}</th>`).join("")}</tr>`;

function showCsd({ student, teacher, classes }, temperature) {
  const anchors = csd(onCircle(student), onCircle(teacher), classes, temperature);
  const name = (letter, degrees) => (_, i) =>
    `${letter}<sub>${i + 1}</sub> ${classes[i]}, ${degrees[i]}°`;
  const features = [...classes.map(name("s", student)), ...classes.map(name("t", teacher))];
  const cell = (anchor, j) => {
    const share = anchor.probabilities[j];
    const own = share === 0 && !anchor.isPositive[j] ? "–" : share.toFixed(4);
    const framed = anchor.isPositive[j] ? ' class="right"' : "";
    return `<td${framed} style="--share: ${Math.round(100 * share)}%">${own}</td>`;
  };
  const body = features.map((text, j) => row(text, anchors.map((anchor) => cell(anchor, j))));
  const losses = row("loss", anchors.map((anchor) => `<td>${anchor.loss.toFixed(4)}</td>`));
  const columns = classes.map((_, i) => `s<sub>${i + 1}</sub>`);
  return {
    table: `<thead>${head("", columns)}</thead><tbody>${body.join("")}${losses}</tbody>`,
    says: `At T = ${temperature} the CSD loss, the mean over the four anchors, is
      ${mean(anchors.map((anchor) => anchor.loss)).toFixed(4)}.`,
  };
}

function showSearch({ points, classes }, k) {
  const queries = search(onCircle(points), classes);
  const name = (i) => `${classes[i]} ${points[i]}°`;
  const hits = queries.map((query) => query.wrongBefore < k);
  const cell = (query, j) => {
    const styles = [query.isRight[j] ? "right" : "", j < k ? "among" : ""];
    return `<td class="${styles.join(" ").trim()}">${name(query.order[j])}</td>`;
  };
  const body = queries.map((query, i) =>
    row(name(i), [...query.order.map((_, j) => cell(query, j)), `<td>${hits[i] ? "hit" : "miss"}</td>`]),
  );
  const columns = [...queries[0].order.map((_, j) => `${j + 1}.`), `at ${k}`];
  return {
    table: `<thead>${head("query", columns)}</thead><tbody>${body.join("")}</tbody>`,
    says: `Recall@${k} is ${mean(hits.map(Number)).toFixed(4)}: ${hits.filter(Boolean).length} of
      ${hits.length} queries hit.`,
  };
}

/** Let a slider of options redraw its example. */
function start(id, show) {
  const example = document.getElementById(id);
  const slider = example.querySelector("input");
  const lists = Object.entries(example.dataset).map(([name, text]) => [name, text.split(" ")]);
  const data = Object.fromEntries(lists);
  const options = slider.dataset.options.split(" ");
  Object.assign(slider, { min: 0, max: options.length - 1, value: options.indexOf(slider.dataset.start) });
  const draw = () => {
    const { table, says } = show(data, Number(options[slider.value]));
    slider.setAttribute("aria-valuetext", options[slider.value]);
    example.querySelector("table").innerHTML = table;
    example.querySelector("[role=status]").textContent = says;
  };
  slider.addEventListener("input", draw);
  draw();
}

start("csd", showCsd);
start("search", showSearch);
