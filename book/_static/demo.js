// What the figures that move have in common: pictures of points, controls, a line of status.
// A subclass of `CourseDemo` adds its pictures and sliders, and has restart, move, draw and report.

window.CourseDemo = class {
  static N_CHAINS = 400;

  // Turn each <div data-demo="name"> of the page into such a figure; without one do nothing.
  static start(name) {
    const start = () =>
      document.querySelectorAll(`[data-demo="${name}"]`).forEach((element) => new this(element));
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
  }

  static normal() {
    return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  }

  constructor(root) {
    root.classList.add("demo");
    this.addPictures(root);
    const controls = document.createElement("div");
    controls.className = "demo-controls";
    root.append(controls);
    this.addControls(controls);
    this.button(controls, "restart", () => this.restart());
    this.pause = this.button(controls, "pause", () => this.toggle());
    this.status = document.createElement("p");
    this.status.className = "demo-status";
    root.append(this.status);
    this.restart();
    this.running = false;
    this.draw();
    if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.pause.textContent = "run";
    } else {
      this.toggle();
    }
  }

  canvas(width, height, label) {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width, height });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    return canvas;
  }

  // Logarithmic: the value is 10 to the slider's position.
  slider(parent, name, low, high, start) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    const output = document.createElement("output");
    Object.assign(input, { type: "range", min: low, max: high, step: 0.05, value: start });
    input.setAttribute("aria-label", name);
    const show = () => {
      output.textContent = (10 ** Number(input.value)).toPrecision(2);
      if (this.status) this.report();
    };
    input.addEventListener("input", show);
    label.append(`${name} `, input, output);
    parent.append(label);
    show();
    return () => 10 ** Number(input.value);
  }

  button(parent, name, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", action);
    parent.append(button);
    return button;
  }

  toggle() {
    this.running = !this.running;
    this.pause.textContent = this.running ? "pause" : "run";
    if (this.running) this.frame();
  }

  frame() {
    if (!this.running) return;
    for (let i = 0; i < 2; i += 1) this.move();
    this.draw();
    if (this.steps % 20 === 0) this.report();
    window.requestAnimationFrame(() => this.frame());
  }

  // The shade of every place of `view`, 0 dark to 1 light.
  map(view, columns, rows, shadeOf) {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: columns, height: rows });
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        const x = view.left + ((column + 0.5) / columns) * (view.right - view.left);
        const y = view.top - ((row + 0.5) / rows) * (view.top - view.bottom);
        const shade = Math.min(1, shadeOf(x, y));
        const colour = [90 + 150 * shade, 130 + 112 * shade, 165 + 80 * shade, 255];
        image.data.set(colour, 4 * (row * columns + column));
      }
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  paint(canvas, background, view, points) {
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = true;
    context.drawImage(background, 0, 0, canvas.width, canvas.height);
    context.fillStyle = "rgba(120, 40, 0, 0.6)";
    for (const [x, y] of points) {
      const px = ((x - view.left) / (view.right - view.left)) * canvas.width;
      const py = ((view.top - y) / (view.top - view.bottom)) * canvas.height;
      context.fillRect(px - 1.5, py - 1.5, 3, 3);
    }
  }

  // Shares of points in the modes and their spread about the nearest, or that they are gone.
  describe(points, centres, who, law, widthOf, width) {
    const counts = centres.map(() => 0);
    let squares = 0;
    for (const [x, y] of points) {
      const distances = centres.map(([a, b]) => (x - a) ** 2 + (y - b) ** 2);
      const mode = distances.indexOf(Math.min(...distances));
      counts[mode] += 1;
      squares += distances[mode];
    }
    const spread = Math.sqrt(squares / (2 * points.length));
    const percent = counts.map((n) => Math.round((100 * n) / points.length)).join(", ");
    return (
      `step ${this.steps}: ${percent} % of the ${who} (${law}); ` +
      `spread around their centres ${spread.toFixed(2)} (${widthOf}: ${width})`
    );
  }

  diverged() {
    return `step ${this.steps}: the chains have diverged; lower the step size and restart`;
  }
};
