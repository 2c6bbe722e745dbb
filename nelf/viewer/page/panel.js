// The panel: the table of models, and sliders for the time and other controls.

const LOOP = 2000; // milliseconds from time 0 to 1 while playing
const TIMES = 5; // frame times kept of each model; their median is shown

/** The models of a bundle as rows to choose from, each with its size, its PSNR and its frame time in this browser. */
export class Models {
  /**
   * @param {HTMLElement} body of the table
   * @param {object[]} artifacts of bundle.json
   * @param {string | null} first name of the initial model, if it exists
   * @param {() => void} changed called when another one is chosen
   */
  constructor(body, artifacts, first, changed) {
    this.artifacts = artifacts;
    this.rows = artifacts.map((artifact, index) => {
      const row = body.appendChild(document.createElement("tr"));
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "model", value: index });
      radio.onchange = changed;
      const label = document.createElement("label");
      label.append(radio, artifact.name);
      row.insertCell().append(label);
      row.insertCell().textContent = artifact.bytes ? `${(artifact.bytes / 1e6).toFixed(1)} MB` : "–";
      row.insertCell().textContent = artifact.psnr ? `${artifact.psnr.toFixed(2)} dB` : "–";
      const time = row.insertCell();
      if (artifact.latency_ms) time.title = `${artifact.latency_ms.toFixed(0)} ms without a browser, where it was exported`;
      return { radio, time };
    });
    this.forgetTimes();
    const index = artifacts.findIndex((artifact) => artifact.name === first);
    this.rows[Math.max(index, 0)].radio.checked = true;
  }

  get #index() {
    return this.rows.findIndex((row) => row.radio.checked);
  }

  get chosen() {
    return this.artifacts[this.#index];
  }

  /** Note how long the chosen model took for a full frame. */
  measured(milliseconds) {
    const index = this.#index;
    this.times[index] = [...this.times[index].slice(1 - TIMES), milliseconds];
    this.counts[index]++;
    this.rows[index].time.textContent = `${this.frameTime.toFixed(0)} ms`;
  }

  /** Median time of the chosen model's last full frames; 0 before there is one. */
  get frameTime() {
    const sorted = this.times[this.#index].toSorted((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : 0;
  }

  /** How many frames of the chosen model have been measured. */
  get count() {
    return this.counts[this.#index];
  }

  /** Forget all times, since the runtime has changed. */
  forgetTimes() {
    this.times = this.artifacts.map(() => []);
    this.counts = this.artifacts.map(() => 0);
    for (const { time } of this.rows) time.textContent = "–";
  }
}

/** The time and the other controls of a bundle; hidden if there are none. */
export class Inputs {
  /**
   * @param {HTMLElement} place
   * @param {object} bundle
   * @param {() => void} moved called after each change
   */
  constructor(place, bundle, moved) {
    this.time = bundle.time?.value ?? 0;
    this.controls = bundle.controls.map((control) => control.value);
    this.playing = false;
    this.moved = moved;
    this.place = place;
    if (bundle.time?.min < bundle.time?.max) this.#addTime(bundle.time);
    bundle.controls.forEach((control, index) =>
      this.#addSlider(control.name, `control_${index}`, control, (value) => (this.controls[index] = value)),
    );
    this.setTimed(false);
  }

  /** Show the time only for models that depend on it. */
  setTimed(timed) {
    if (!timed && this.playing) this.toggle();
    if (this.button) this.button.hidden = this.slider.parentElement.hidden = !timed;
    this.place.hidden = [...this.place.children].every((child) => child.hidden);
  }

  /** Play or pause. */
  toggle() {
    if (!this.button || this.button.hidden) return;
    this.playing = !this.playing;
    this.button.textContent = this.playing ? "Pause" : "Play";
    if (this.playing) requestAnimationFrame((now) => this.#play(now, now));
    else this.moved();
  }

  #play(now, last) {
    if (!this.playing) return;
    const { min, max } = this.range;
    const next = this.time + (now - last) / LOOP;
    this.time = next > max ? min : next;
    this.slider.value = String(this.time);
    this.moved();
    requestAnimationFrame((later) => this.#play(later, now));
  }

  #addTime(range) {
    this.range = range;
    this.button = Object.assign(document.createElement("button"), { type: "button", id: "play", textContent: "Play" });
    this.button.onclick = () => this.toggle();
    this.place.append(this.button);
    this.slider = this.#addSlider("Time", "time", range, (value) => (this.time = value));
  }

  #addSlider(text, id, { min, max, value }, set) {
    const label = document.createElement("label");
    const slider = Object.assign(document.createElement("input"), { type: "range", id, min, max, step: "any" });
    slider.value = value;
    slider.oninput = () => {
      set(Number(slider.value));
      this.moved();
    };
    label.append(text, slider);
    this.place.append(label);
    return slider;
  }
}
